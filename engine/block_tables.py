"""The block tables of a step's sequences as one array, carried over from step to step."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
from numpy.typing import NDArray

from scheduling.step import SequenceStep

Int64s = NDArray[np.int64]


class BlockTables:
    """Converts each block id once: while a `SequenceStep` is the same object, its block ids have only grown."""

    def __init__(self) -> None:
        self._steps: tuple[SequenceStep, ...] = ()
        self._rows: Int64s = np.zeros((0, 1), dtype=np.int64)  # [B or more, capacity]
        self._counts: Int64s = np.zeros(0, dtype=np.int64)  # [B] blocks of each row; its first block fills the rest

    def update(self, steps: Seq[SequenceStep], counts: Int64s) -> Int64s:
        """[B, longest], contiguous: the first `counts` blocks of each sequence, padded with its own first block.

        Shapes:  counts [B], at least 1 each. Returns a copy.
        Cost:    O(B) when the sequences are those of the last call, and O(blocks that are new).
        """
        steps = tuple(steps)
        if steps != self._steps:  # by identity
            self._arrange(steps)
        longest = int(counts.max())
        if longest > self._rows.shape[1]:
            self._widen(longest)
        known = self._counts
        if (counts < known).any():
            known = np.where(counts < known, 0, known)  # computed anew from an earlier position
        for index in np.flatnonzero(counts > known).tolist():
            self._extend(index, int(known[index]), int(counts[index]), steps[index].block_ids)
        self._counts = counts
        return self._rows[: len(steps), :longest].copy()

    def _extend(self, index: int, known: int, count: int, block_ids: Seq[int]) -> None:
        row = self._rows[index]
        row[known:count] = block_ids[known:count]
        if known == 0:
            row[count:] = row[0]

    def _arrange(self, steps: tuple[SequenceStep, ...]) -> None:
        """Rows in the order of `steps`; new ones have no blocks yet."""
        row_of = {step: row for row, step in enumerate(self._steps)}
        sources = np.array([row_of.get(step, -1) for step in steps], dtype=np.int64)
        rows = np.zeros((len(steps), self._rows.shape[1]), dtype=np.int64)
        kept = sources >= 0
        rows[kept] = self._rows[sources[kept]]
        counts = np.zeros(len(steps), dtype=np.int64)
        counts[kept] = self._counts[sources[kept]]
        self._steps, self._rows, self._counts = steps, rows, counts

    def _widen(self, longest: int) -> None:
        """Room for `longest` blocks, and half as many again."""
        before = self._rows
        self._rows = np.empty((len(before), longest + longest // 2), dtype=np.int64)
        self._rows[:, : before.shape[1]] = before
        self._rows[:, before.shape[1] :] = before[:, :1]
