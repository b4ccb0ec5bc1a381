"""Where a long sequence is cut for decode: at absolute positions, whoever else is in the batch.

    split      0     1        31      32          63      64
    positions  [0,   [256,    [7936,  [8192,      [24064, [24576,
                256)  512) ..  8192)   8704) ...   24576)  25600) ...

Each split is computed alone and the results are added in order, so a row's numbers depend on its own KV only. Splits
grow with the position: a short context has enough of them for a batch of one, a long one has few partial results.

Source: Flash-Decoding (Dao et al. 2023); fixed boundaries after "Defeating nondeterminism in LLM inference" (He 2025).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FIRST_SPLIT = 256  # positions; a multiple of every key tile
SPLITS_PER_LEVEL = 32  # after so many, splits are twice as long

Int64s = NDArray[np.int64]


def split_starts(count: int) -> Int64s:
    """[count]: the first position of each split. `split_start` in kernels/arithmetic.py is the same on the device."""
    level, place = np.divmod(np.arange(count, dtype=np.int64), SPLITS_PER_LEVEL)
    return FIRST_SPLIT * (SPLITS_PER_LEVEL * ((1 << level) - 1) + (place << level))


def num_splits(length: int) -> int:
    """How many splits hold `length` positions."""
    level = 0
    while FIRST_SPLIT * SPLITS_PER_LEVEL * ((2 << level) - 1) < length:
        level += 1
    before = FIRST_SPLIT * SPLITS_PER_LEVEL * ((1 << level) - 1)
    return SPLITS_PER_LEVEL * level + -(-(length - before) // (FIRST_SPLIT << level))


class SplitTable:
    """Counts splits of many sequences at once."""

    def __init__(self, max_length: int) -> None:
        self.max_splits = num_splits(max_length)  # of one sequence
        self._starts = split_starts(self.max_splits)

    def items(self, lengths: Int64s) -> tuple[Int64s, Int64s]:
        """The work of a decode step: every (sequence, split), sequence by sequence.

        Shapes:  lengths [B], each at most max_length; 0 has no split. Returns starts [B + 1], where each sequence's
                 items begin, the total last; and items [total], sequence << 32 | split.
        """
        counts = np.searchsorted(self._starts, lengths, side="left")
        starts = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(counts, out=starts[1:])
        owners = np.repeat(np.arange(len(lengths), dtype=np.int64), counts)
        return starts, (owners << 32) | (np.arange(starts[-1], dtype=np.int64) - starts[owners])
