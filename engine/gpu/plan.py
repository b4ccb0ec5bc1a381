"""What the attention kernels need to know of a step beside its queries: made on the host once, used by every layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from engine.gpu.splits import Int64s, SplitTable


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """One step, on the device. T rows of the step, D sequences with one new token, the rest in tiles."""

    num_rows: int  # T
    tables: Tensor  # [seats, width] int32: block tables, one per row of it
    positions: Tensor  # [T] int64
    seats: Tensor  # [T] int64: whose block table; negative: padding, no KV is written or read
    decode_rows: Tensor  # [D] int64: their rows
    item_starts: Tensor  # [D + 1] int64
    items: Tensor  # int64: decode << 32 | split; those from item_starts[D] on are not looked at
    max_items: int  # how many there may be: what the partial results need room for
    tiles: dict[int, Tensor]  # by query heads per KV head: [num_tiles * 3] int64: first row, rows, index of the tile
    covers_all_rows: bool  # no row is without a sequence: nothing needs to be zeroed


@dataclass(frozen=True, slots=True)
class HostPlan:
    """The same as NumPy arrays, before the copy."""

    decode_rows: Int64s
    item_starts: Int64s
    items: Int64s
    tiles: dict[int, Int64s]  # by query heads per KV head: [num_tiles * 3]


def plan_step(starts: Int64s, lengths: Int64s, splits: SplitTable, tile_rows: dict[int, int]) -> HostPlan:
    """Divide a packed step among the kernels.

    Shapes:  starts and lengths [B]: positions computed before, tokens in this step; `tile_rows`: rows of a prefill
             tile, by query heads per KV head. A sequence with one token is a decode, however it came to that.
    """
    first_rows = np.cumsum(lengths) - lengths
    single = lengths == 1
    item_starts, items = splits.items(starts[single] + 1)
    return HostPlan(
        decode_rows=first_rows[single],
        item_starts=item_starts,
        items=items,
        tiles={
            share: _tiles(first_rows[~single], lengths[~single], starts[~single], share, rows)
            for share, rows in tile_rows.items()
        },
    )


def _tiles(first_rows: Int64s, lengths: Int64s, starts: Int64s, share: int, tile_rows: int) -> Int64s:
    """Those that read most keys first: a long one that starts last would have the device to itself."""
    counts = -(-lengths * share // tile_rows)
    owner = np.repeat(np.arange(len(lengths)), counts)
    index = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    keys = starts[owner] + index * tile_rows // share
    order = np.argsort(-keys, kind="stable")
    return np.stack((first_rows[owner], lengths[owner], index), axis=1)[order].reshape(-1)
