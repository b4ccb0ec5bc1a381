"""Where long sequences are cut, and how a step's work is listed."""

from __future__ import annotations

import numpy as np
import pytest

from engine.gpu.plan import plan_step
from engine.gpu.splits import FIRST_SPLIT, SPLITS_PER_LEVEL, SplitTable, num_splits, split_starts


def test_splits_cover_every_position_and_grow() -> None:
    """One after the other, doubling once per level; the counts of one and of many agree."""
    starts = split_starts(3 * SPLITS_PER_LEVEL)
    sizes = np.diff(starts)
    assert starts[0] == 0
    assert set(sizes[:SPLITS_PER_LEVEL]) == {FIRST_SPLIT}
    assert set(sizes[SPLITS_PER_LEVEL : 2 * SPLITS_PER_LEVEL]) == {2 * FIRST_SPLIT}
    for length in (1, FIRST_SPLIT, FIRST_SPLIT + 1, 8191, 8192, 8193, 24576, 24577, 100_000):
        expected = int(np.searchsorted(split_starts(num_splits(length) + 2), length))
        assert num_splits(length) == expected
        counted, items = SplitTable(100_000).items(np.array([0, length, 1]))
        assert counted.tolist() == [0, 0, expected, expected + 1]
        assert items.tolist() == [*((1 << 32) + split for split in range(expected)), 2 << 32]


@pytest.mark.parametrize("share", [1, 3, 4, 20])
def test_tiles_cover_every_query_once(share: int) -> None:
    """Each (row, query head) of a chunk lies in one tile; decodes are in none; the most work comes first."""
    starts, lengths = np.array([7, 0, 90, 3]), np.array([1, 70, 5, 1])
    plan = plan_step(starts, lengths, SplitTable(512), {share: 16})
    assert plan.decode_rows.tolist() == [0, 76]
    seen, keys = [], []
    for first_row, rows, index in plan.tiles[share].reshape(-1, 3).tolist():
        flat = range(index * 16, min((index + 1) * 16, rows * share))
        assert len(flat) > 0
        seen += [(first_row + place // share, place % share) for place in flat]
        keys.append({1: 0, 71: 90}[first_row] + flat[0] // share)
    assert sorted(seen) == [(row, head) for row in range(1, 76) for head in range(share)]
    assert keys == sorted(keys, reverse=True)
