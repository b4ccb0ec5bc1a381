"""The block tables of a step's sequences as one array, carried over from step to step."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scheduling.step import SequenceStep

Int64s = NDArray[np.int64]

MIN_COLUMNS = 8


class BlockTables:
    """Converts each block id once: while a `SequenceStep` is the same object, its block ids have only grown."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._steps: tuple[SequenceStep, ...] = ()
        self._held: list[int] = []  # [B] tokens that the blocks in each row hold
        self._set_rows(np.zeros((0, MIN_COLUMNS), dtype=np.int64))

    def update(self, steps: tuple[SequenceStep, ...], ends: Seq[int]) -> Tensor:
        """[B, longest or more]: the blocks that hold [0, end) of each sequence, then others of its own.

        Valid until the next call. Cost: O(B), little where the sequences are those of the last call, and O(blocks that
        are new).
        """
        if steps != self._steps:  # by identity
            self._arrange(steps)
        held = self._held
        for index in [i for i, end in enumerate(ends) if end > held[i]]:
            count = -(-ends[index] // self._block_size)
            if count > self.rows.shape[1]:
                self._widen(count)
            self._extend(index, count, steps[index].block_ids)
        return self.tensor

    def _extend(self, index: int, count: int, block_ids: Seq[int]) -> None:
        row, known = self.rows[index], self._held[index] // self._block_size
        row[known:count] = block_ids[known:count]
        if known == 0:
            row[count:] = row[0]
        self._held[index] = count * self._block_size

    def _arrange(self, steps: tuple[SequenceStep, ...]) -> None:
        """Rows in the order of `steps`; new ones have no blocks yet."""
        row_of = {step: row for row, step in enumerate(self._steps)}
        sources = [row_of.get(step, -1) for step in steps]
        rows = np.zeros((len(steps), self.rows.shape[1]), dtype=np.int64)
        kept = np.array(sources) >= 0
        rows[kept] = self.rows[np.array(sources)[kept]]
        self._held = [self._held[source] if source >= 0 else 0 for source in sources]
        self._steps = steps
        self._set_rows(rows)

    def _widen(self, count: int) -> None:
        """Room for `count` blocks, and half as many again."""
        before = self.rows
        rows = np.empty((len(before), count + count // 2), dtype=np.int64)
        rows[:, : before.shape[1]] = before
        rows[:, before.shape[1] :] = before[:, :1]
        self._set_rows(rows)

    def _set_rows(self, rows: Int64s) -> None:
        self.rows, self.tensor = rows, torch.from_numpy(rows)
