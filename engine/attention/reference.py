"""The reference backend: gather each sequence's KV, then dense attention. Any device, any dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.attention.dense import attend_dense
from engine.attention.interface import AttentionCall
from engine.batch import StepBatch
from engine.kv_pool import KvPool


class ReferenceAttention:
    """One sequence after the other; slow with many of them, easy to trust.

    Not batch-invariant: the matrix products have the sequences' own shapes.
    """

    def __init__(self, pool: KvPool) -> None:
        self._pool = pool
        self._batch: StepBatch | None = None
        self._tables: list[Tensor] = []

    def begin(self, batch: StepBatch) -> None:
        self._batch = batch
        size = self._pool.layout.block_size
        tables = batch.block_tables.to(self._pool.device)
        self._tables = [tables[i, : -(-end // size)] for i, end in enumerate(batch.ends)]

    def attend(self, query: Tensor, call: AttentionCall) -> Tensor:
        assert self._batch is not None
        heads, rows, _ = query.shape
        value_size = self._pool.layout.layers[call.layer].value_size
        out = torch.zeros(rows, heads, value_size, dtype=query.dtype, device=query.device)
        first = 0
        for table, start, end in zip(self._tables, self._batch.starts, self._batch.ends, strict=True):
            key, value = self._pool.gather(call.layer, table, end)
            last = first + end - start
            out[first:last] = attend_dense(query[:, first:last], key, value, start, call).transpose(0, 1)
            first = last
        return out
