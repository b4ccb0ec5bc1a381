"""Batch-invariant attention for float32 on the CPU: every product has one shape, whatever else is in the step.

Queries come in tiles of 16 or more rows, KV in tiles of 64 positions at absolute places (query_tiles.py), in order,
folded by online softmax (online_softmax.py):

    scores = key tile [64, Dk] @ queries^T [Dk, R]         always this M, N and K

A tile that a query sees nothing of changes nothing, so tokens of any chunk may share a query tile. Every elementwise
operation runs over a multiple of 64 numbers, because kernels treat the last few numbers otherwise. What remains to be
trusted is that a product inside `bmm` does not depend on how many others the call has, nor a row on its place in the
tile: tests/engine/test_attention.py proves it.
"""

from __future__ import annotations

from math import gcd, prod

import numpy as np
import torch
from torch import Tensor

from engine.attention.interface import AttentionCall
from engine.attention.online_softmax import LOWEST, OnlineSoftmax
from engine.attention.query_tiles import KEY_TILE, TileGroup, Turn, plan_tiles, tile_rows, turns_of
from engine.batch import StepBatch
from engine.kv_pool import KvPool


class TiledAttention:
    """The backend of deterministic mode: one thread, float32."""

    def __init__(self, pool: KvPool) -> None:
        assert pool.dtype == torch.float32 and pool.device.type == "cpu"
        self._pool = pool
        self._batch: StepBatch | None = None
        self._groups: dict[int, list[TileGroup]] = {}
        self._pieces: dict[tuple[int, int, int], Tensor] = {}
        self._turns: dict[tuple[int, int | None], list[Turn]] = {}
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
            self._groups[share] = plan_tiles(self._batch, share, self._pool.layout.block_size, self._piece_slots)
        for group in self._groups[share]:
            found = self._attend_group(group, by_token, call)  # [tiles, tokens, K, G, Dv]
            # Spare places repeat a token with the same numbers, so that writing twice is harmless.
            out[group.rows] = found
        return out.view(rows, heads, facts.value_size)

    # ---- once per step ----

    def _piece_ids(self, group: TileGroup, kv_heads: int, size: int) -> Tensor:
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

    def _turns_for(self, group: TileGroup, window: int | None) -> list[Turn]:
        key = (id(group), window)  # groups live as long as the step
        if key not in self._turns:
            self._turns[key] = turns_of(group, window)
        return self._turns[key]

    # ---- once per layer ----

    def _attend_group(self, group: TileGroup, by_token: Tensor, call: AttentionCall) -> Tensor:
        facts = self._pool.layout.layers[call.layer]
        tiles, tokens = group.rows.shape
        kv_heads, share = facts.kv_heads, by_token.shape[3]
        rows = tile_rows(share)
        lead = (tiles, kv_heads) if group.many else (kv_heads, tiles)
        queries = self._buffer("queries", *lead, facts.key_size, rows)
        queries[..., tokens * share :] = 0
        chosen = by_token[group.rows]  # [tiles, tokens, K, Dk, G]
        order = (0, 2, 3, 1, 4) if group.many else (2, 0, 3, 1, 4)
        queries[..., : tokens * share].view(*lead, facts.key_size, tokens, share).copy_(chosen.permute(order))
        state = OnlineSoftmax(lead, rows, facts.value_size, call.sinks, share, tokens, group.many)
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
