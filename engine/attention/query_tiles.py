"""A step's rows in query tiles, and the KV tiles that each needs: planned once per step, for every layer alike.

A query tile is 16 or more rows: the query heads that share a KV head, of one or several tokens. KV comes in tiles of 64
positions at absolute places; a tile is gathered in pieces, the longest runs of slots within one block and one tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.batch import Int64s, StepBatch, padded

KEY_TILE = 64  # positions
MIN_ROWS = 16  # of a query tile


@dataclass(frozen=True, slots=True)
class TileGroup:
    """Query tiles that are computed together: single tiles of many sequences, or the tiles of one sequence.

    Sorted by the number of KV tiles, most first (single) or last (one sequence): at each KV tile the query tiles that
    need it are neighbours.
    """

    rows: Tensor  # [tiles, tokens per query tile]: the step's row of each token; spare places repeat the first
    positions: Tensor  # [tiles, R, 1]: of each row of the tile; spare rows repeat
    low: Int64s  # [tiles]: the lowest position of each tile
    high: Int64s  # [tiles]: the highest
    tables: Int64s  # [sequences, pieces]: block of each piece of the KV, padded to whole KV tiles
    inner: Int64s  # [pieces]: slot at which the piece starts in its block
    many: bool  # one sequence per tile


class Turn(NamedTuple):
    """One KV tile's turn."""

    tile: int
    active: slice  # of the group's query tiles
    hidden: Tensor | None  # broadcasts to the scores: keys that a row does not see; None where all are seen


@dataclass(frozen=True, slots=True)
class _Step:
    """The sequences of a step, and how their KV lies."""

    starts: Int64s  # [sequences]: position of each one's first row
    ends: Int64s  # after its last
    first_rows: Int64s  # where its rows begin among the step's
    tables: Int64s  # [sequences, blocks]
    block_size: int
    piece_slots: int


def tile_rows(share: int) -> int:
    """R: the rows of a query tile, where so many query heads share a KV head."""
    return padded(share, MIN_ROWS)


def plan_tiles(batch: StepBatch, share: int, block_size: int, piece_slots: int) -> list[TileGroup]:
    """Divide the step's rows into query tiles of as many tokens as fill one; `share` query heads have one KV head."""
    tokens = max(1, MIN_ROWS // share)
    starts, ends = np.array(batch.starts), np.array(batch.ends)
    lengths = ends - starts
    first_rows = np.cumsum(lengths) - lengths
    step = _Step(starts, ends, first_rows, batch.block_tables.numpy(), block_size, piece_slots)
    groups = []
    small = np.flatnonzero(lengths <= tokens)
    if len(small):
        small = small[np.argsort(-ends[small], kind="stable")]
        inside = np.where(np.arange(tokens) < lengths[small, None], np.arange(tokens), 0)
        groups.append(_group(step, small, inside, share))
    for i in np.flatnonzero(lengths > tokens):
        inside = np.arange(-(-int(lengths[i]) // tokens) * tokens).reshape(-1, tokens)
        inside = np.where(inside < lengths[i], inside, inside[:, :1])
        groups.append(_group(step, np.array([i]), inside, share))
    return groups


def _group(step: _Step, chosen: Int64s, inside: Int64s, share: int) -> TileGroup:
    """A group of the `chosen` sequences; `inside` [tiles, tokens] counts tokens from a sequence's first new one."""
    tiles, tokens = inside.shape
    positions = step.starts[chosen, None] + inside
    per_row = np.zeros((tiles, tile_rows(share)), dtype=np.int64)
    per_row[:] = positions[:, :1]
    per_row[:, : tokens * share] = np.repeat(positions, share, axis=1)
    ends, tables = step.ends[chosen], step.tables[chosen]
    at = np.arange(0, padded(int(ends.max()), KEY_TILE), step.piece_slots)
    block_index = at // step.block_size
    # Beyond its end a sequence reads its own first block, masked: another's block might hold not-a-number.
    own = block_index * step.block_size < ends[:, None]
    blocks = tables[:, np.minimum(block_index, tables.shape[1] - 1)]
    return TileGroup(
        rows=torch.from_numpy(step.first_rows[chosen, None] + inside),
        positions=torch.from_numpy(per_row)[:, :, None],
        low=positions.min(axis=1),
        high=positions.max(axis=1),
        tables=np.where(own, blocks, tables[:, :1]),
        inner=at % step.block_size,
        many=len(chosen) == tiles,
    )


def turns_of(group: TileGroup, window: int | None) -> list[Turn]:
    """The KV tiles that a group needs, in order; the same for every layer with this window."""
    width = int(group.high.max()) + 1 if window is None else window
    turns = []
    for tile in range(int(group.high.max()) // KEY_TILE + 1):
        first, last = tile * KEY_TILE, (tile + 1) * KEY_TILE
        needed = np.flatnonzero((group.high >= first) & (group.low - width + 1 < last))
        if not len(needed):
            continue
        active = slice(int(needed[0]), int(needed[-1]) + 1)
        hidden = None
        if last - 1 > int(group.low[active].min()) or first <= int(group.high[active].max()) - width:
            hidden = _hidden(group.positions[active], first, width)
            hidden = hidden[:, None] if group.many else hidden
        turns.append(Turn(tile, active, hidden))
    return turns


def _hidden(positions: Tensor, first: int, window: int) -> Tensor:
    """[tiles, R, 64] of bool: which keys of the KV tile at `first` a row does not see."""
    key_at = torch.arange(first, first + KEY_TILE)
    return (key_at > positions) | (key_at <= positions - window)
