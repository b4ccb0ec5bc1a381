"""Batch-invariant attention for float32 on the CPU: every product has one shape, whatever else is in the step.

Queries come in tiles of 16 or more rows (the query heads that share a KV head, of one or several tokens), KV in tiles
of 64 positions at absolute places, in order, folded by online softmax:

    scores = key tile [64, Dk] @ queries^T [Dk, R]         always this M, N and K
    m' = max(m, rowmax)   p = exp(scores - m')   a = exp(m - m')
    l  = l * a + rowsum(p)                        acc = acc * a + p [R, 64] @ value tile [64, Dv]

A tile that a query sees nothing of leaves its m, l and acc as they were, bit for bit (p is 0, a is 1), so tokens of
any chunk may share a query tile. Every elementwise operation runs over a multiple of 64 numbers, because kernels treat
the last few numbers otherwise. What remains to be trusted is that a product inside `bmm` does not depend on how many
others the call has, nor a row on its place in the tile: tests/engine/test_attention.py proves it.

Source: online softmax (Milakov and Gimelshein 2018); FlashAttention-2 (Dao 2023), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.attention.interface import AttentionCall
from engine.batch import Int64s, StepBatch, padded
from engine.kv_pool import KvPool

KEY_TILE = 64  # positions
MIN_ROWS = 16  # of a query tile
LOWEST = -1e30  # a hidden score, and the running maximum before any key: finite, or inf - inf would be computed
LEAST_EXPONENT = -80.0  # exp of less is below the smallest normal number, nearly


@dataclass(frozen=True, slots=True)
class _Group:
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


class _Turn(NamedTuple):
    """One KV tile's turn."""

    tile: int
    active: slice  # of the group's query tiles
    hidden: Tensor | None  # broadcasts to the scores: keys that a row does not see; None where all are seen


class TiledAttention:
    """The backend of deterministic mode: one thread, float32."""

    def __init__(self, pool: KvPool) -> None:
        assert pool.dtype == torch.float32 and pool.device.type == "cpu"
        self._pool = pool
        self._batch: StepBatch | None = None
        self._groups: dict[int, list[_Group]] = {}
        self._pieces: dict[tuple[int, int, int], Tensor] = {}
        self._turns: dict[tuple[int, int | None], list[_Turn]] = {}
        self._scratch: dict[str, Tensor] = {}
        self._piece_slots = gcd(pool.layout.block_size, KEY_TILE)
        self._piece = pool.piece_elements(self._piece_slots)
        self._flat = pool.data.view(-1, self._piece)

    def begin(self, batch: StepBatch) -> None:
        self._batch = batch
        self._groups.clear()
        self._pieces.clear()
        self._turns.clear()

    def attend(self, query: Tensor, call: AttentionCall) -> Tensor:
        assert self._batch is not None
        facts = self._pool.layout.layers[call.layer]
        heads, rows, key_size = query.shape
        assert key_size == facts.key_size and heads % facts.kv_heads == 0
        share = heads // facts.kv_heads
        by_token = query.view(facts.kv_heads, share, rows, key_size).permute(2, 0, 3, 1)  # [T, K, Dk, G]
        out = torch.zeros(rows, facts.kv_heads, share, facts.value_size)
        if share not in self._groups:
            self._groups[share] = self._plan(self._batch, share)
        for group in self._groups[share]:
            found = self._attend_group(group, by_token, call)  # [tiles, tokens, K, G, Dv]
            # Spare places repeat a token with the same numbers, so that writing twice is harmless.
            out[group.rows] = found
        return out.view(rows, heads, facts.value_size)

    # ---- once per step ----

    def _plan(self, batch: StepBatch, share: int) -> list[_Group]:
        """Divide the step's rows into query tiles of as many tokens as fill one."""
        tokens = max(1, MIN_ROWS // share)
        starts, ends = np.array(batch.starts), np.array(batch.ends)
        lengths = ends - starts
        first_rows = np.cumsum(lengths) - lengths
        tables = batch.block_tables.numpy()
        groups = []
        small = np.flatnonzero(lengths <= tokens)
        if len(small):
            small = small[np.argsort(-ends[small], kind="stable")]
            inside = np.where(np.arange(tokens) < lengths[small, None], np.arange(tokens), 0)
            groups.append(self._group(first_rows, starts, ends, tables, small, inside, share))
        for i in np.flatnonzero(lengths > tokens):
            inside = np.arange(-(-int(lengths[i]) // tokens) * tokens).reshape(-1, tokens)
            inside = np.where(inside < lengths[i], inside, inside[:, :1])
            groups.append(self._group(first_rows, starts, ends, tables, np.array([i]), inside, share))
        return groups

    def _group(
        self,
        first_rows: Int64s,
        starts: Int64s,
        ends: Int64s,
        tables: Int64s,
        chosen: Int64s,
        inside: Int64s,
        share: int,
    ) -> _Group:
        """A group of the `chosen` sequences; `inside` [tiles, tokens] counts tokens from a sequence's first new one."""
        tiles, tokens = inside.shape
        positions = starts[chosen, None] + inside
        per_row = np.zeros((tiles, _tile_rows(share)), dtype=np.int64)
        per_row[:] = positions[:, :1]
        per_row[:, : tokens * share] = np.repeat(positions, share, axis=1)
        size = self._pool.layout.block_size
        at = np.arange(0, padded(int(ends[chosen].max()), KEY_TILE), self._piece_slots)
        block_index = at // size
        # Beyond its end a sequence reads its own first block, masked: another's block might hold not-a-number.
        own = block_index * size < ends[chosen, None]
        blocks = tables[chosen][:, np.minimum(block_index, tables.shape[1] - 1)]
        return _Group(
            rows=torch.from_numpy(first_rows[chosen, None] + inside),
            positions=torch.from_numpy(per_row)[:, :, None],
            low=positions.min(axis=1),
            high=positions.max(axis=1),
            tables=np.where(own, blocks, tables[chosen, :1]),
            inner=at % size,
            many=len(chosen) == tiles,
        )

    def _piece_ids(self, group: _Group, kv_heads: int, size: int) -> Tensor:
        """Rows of the flat pool that hold a group's KV, for a layer at offset 0.

        Returns [KV tiles, sequences, K, pieces per tile, rows per piece] int64.
        """
        key = (id(group), kv_heads, size)
        if key not in self._pieces:
            per_piece = self._piece_slots * size // self._piece
            head = np.arange(kv_heads) * (self._pool.layout.block_size * size // self._piece)
            inner = group.inner * size // self._piece
            base = group.tables * (self._pool.layout.block_elements // self._piece) + inner  # [sequences, pieces]
            tiled = base.reshape(len(base), -1, 1, KEY_TILE // self._piece_slots).swapaxes(0, 1)
            ids = (tiled + head[:, None])[..., None] + np.arange(per_piece)
            self._pieces[key] = torch.from_numpy(np.ascontiguousarray(ids))
        return self._pieces[key]

    def _turns_for(self, group: _Group, window: int | None) -> list[_Turn]:
        """The KV tiles that a group needs, in order; the same for every layer with this window."""
        key = (id(group), window)  # groups live as long as the step
        if key not in self._turns:
            width = int(group.high.max()) + 1 if window is None else window
            self._turns[key] = []
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
                self._turns[key].append(_Turn(tile, active, hidden))
        return self._turns[key]

    # ---- once per layer ----

    def _attend_group(self, group: _Group, by_token: Tensor, call: AttentionCall) -> Tensor:
        facts = self._pool.layout.layers[call.layer]
        tiles, tokens = group.rows.shape
        kv_heads, share = facts.kv_heads, by_token.shape[3]
        rows = _tile_rows(share)
        lead = (tiles, kv_heads) if group.many else (kv_heads, tiles)
        queries = self._buffer("queries", *lead, facts.key_size, rows)
        queries[..., tokens * share :] = 0
        chosen = by_token[group.rows]  # [tiles, tokens, K, Dk, G]
        order = (0, 2, 3, 1, 4) if group.many else (2, 0, 3, 1, 4)
        queries[..., : tokens * share].view(*lead, facts.key_size, tokens, share).copy_(chosen.permute(order))
        state = _Softmax(lead, rows, facts.value_size, call.sinks, share, tokens, group.many)
        key_ids = self._piece_ids(group, kv_heads, facts.key_size)
        value_ids = self._piece_ids(group, kv_heads, facts.value_size)
        key_at = self._pool.layout.layer_offset(call.layer) // self._piece
        value_at = self._pool.value_offset(call.layer) // self._piece
        for tile, active, hidden in self._turns_for(group, call.window):
            some = active if group.many else slice(0, 1)
            key = self._gather("key", key_ids[tile, some] + key_at, facts.key_size)
            value = self._gather("value", value_ids[tile, some] + value_at, facts.value_size)
            scores = self._scores(queries, key, active, group.many)  # [active, K, R, 64] or [K, active, R, 64]
            scores.mul_(call.scale)
            if call.softcap is not None:
                scores.div_(call.softcap).tanh_().mul_(call.softcap)
            if hidden is not None:
                scores.masked_fill_(hidden, LOWEST)
            state.fold(scores, value, active, hidden)
        found = state.result()[..., : tokens * share, :].view(*lead, tokens, share, facts.value_size)
        return found.permute(0, 2, 1, 3, 4) if group.many else found.permute(1, 2, 0, 3, 4)

    def _scores(self, queries: Tensor, key: Tensor, active: slice, many: bool) -> Tensor:
        """Scores of the active query tiles against one KV tile, contiguous along the KV.

        Keys come first in the product: a transposed right side is five times slower here.
        """
        if many:
            chosen = queries[active]
            raw = self._buffer("raw", *chosen.shape[:2], KEY_TILE, chosen.shape[3])
            torch.bmm(key.flatten(0, 1), chosen.flatten(0, 1), out=raw.flatten(0, 1))
        else:
            chosen = queries[:, active]
            raw = self._buffer("raw", *chosen.shape[:2], KEY_TILE, chosen.shape[3])
            for head in range(len(raw)):
                torch.bmm(key[0, head].expand(raw.shape[1], -1, -1), chosen[head], out=raw[head])
        scores = self._buffer("scores", *raw.shape[:2], raw.shape[3], KEY_TILE)
        return scores.copy_(raw.transpose(2, 3))

    def _gather(self, name: str, ids: Tensor, size: int) -> Tensor:
        """One KV tile of some sequences: [sequences, K, 64, size], valid until the next tile."""
        tile = self._buffer(name, ids.shape[0], ids.shape[1], KEY_TILE, size)
        torch.index_select(self._flat, 0, ids.flatten(), out=tile.view(-1, self._piece))
        return tile

    def _buffer(self, name: str, *shape: int) -> Tensor:
        """Memory that is kept between calls: a fresh allocation costs more than the copy into it."""
        count = prod(shape)
        held = self._scratch.get(name)
        if held is None or held.numel() < count:
            held = self._scratch[name] = torch.empty(count)
        return held[:count].view(shape)


class _Softmax:
    """Running maximum, sum and weighted values of a group's rows."""

    def __init__(
        self,
        lead: tuple[int, int],
        rows: int,
        value_size: int,
        sinks: Tensor | None,
        share: int,
        tokens: int,
        many: bool,
    ) -> None:
        self._many = many
        self._sum = torch.zeros(*lead, rows, 1)
        self._values = torch.zeros(*lead, rows, value_size)
        self._max = torch.full((*lead, rows, 1), LOWEST)
        if sinks is not None:  # one more score, already folded: its weight is exp(sink - sink) = 1, its value 0
            of_head = sinks.view(-1, 1, share).expand(-1, tokens, -1).reshape(-1, tokens * share)  # [K, tokens * G]
            self._max[..., : tokens * share, 0] = of_head if many else of_head[:, None]
            self._sum[..., : tokens * share, 0] = 1

    def fold(self, scores: Tensor, value: Tensor, active: slice, hidden: Tensor | None) -> None:
        """Take one KV tile in; `scores` is overwritten.

        Shapes:  scores [*lead with only active tiles, R, 64], LOWEST where `hidden`, which broadcasts to it;
                 value [sequences, K, 64, Dv].
        """
        here = active if self._many else (slice(None), active)
        old, total, values = self._max[here], self._sum[here], self._values[here]
        new = torch.maximum(old, scores.amax(-1, keepdim=True))
        # The clamp keeps exp off its path for results that underflow, 13 times slower here. What it changes is a
        # weight below 1e-34 of the highest, in every company alike.
        weights = scores.sub_(new).clamp_min_(LEAST_EXPONENT).exp_()
        if hidden is not None:
            weights.masked_fill_(hidden, 0)
        scale = old.sub_(new).clamp_min_(LEAST_EXPONENT).exp_()
        total.mul_(scale).add_(weights.sum(-1, keepdim=True))
        values.mul_(scale)
        if self._many:
            values.flatten(0, 1).baddbmm_(weights.flatten(0, 1), value.flatten(0, 1))
        else:
            for head in range(len(values)):
                values[head].baddbmm_(weights[head], value[0, head].expand(values.shape[1], -1, -1))
        old.copy_(new)

    def result(self) -> Tensor:
        """[*lead, R, Dv]."""
        return self._values / self._sum


def _tile_rows(share: int) -> int:
    return padded(share, MIN_ROWS)


def _hidden(positions: Tensor, first: int, window: int) -> Tensor:
    """[tiles, R, 64] of bool: which keys of the KV tile at `first` a row does not see."""
    key_at = torch.arange(first, first + KEY_TILE)
    return (key_at > positions) | (key_at <= positions - window)
