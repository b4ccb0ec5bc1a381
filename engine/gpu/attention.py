"""Paged attention by our Triton kernels, behind `AttentionBackend`. NOT YET RUN ON HARDWARE, only interpreted.

with a plan (GpuRunner, CUDA graphs)      use(plan);   per layer write(), attend()
as a plain backend (TorchRunner)          begin(batch) makes the plan from a packed batch; attend()
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from math import log2
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.attention.interface import AttentionCall
from engine.batch import StepBatch
from engine.gpu.kernels.decode import decode_kernel, reduce_kernel
from engine.gpu.kernels.prefill import prefill_kernel
from engine.gpu.kernels.write import write_kernel
from engine.gpu.plan import AttentionPlan, plan_step
from engine.gpu.splits import FIRST_SPLIT, SPLITS_PER_LEVEL, SplitTable
from engine.gpu.tiling import PREFILL_WARPS, tiling_for
from engine.kv_pool import KvPool

LOG2E = log2(2.718281828459045)
WRITE_ROWS = 8  # of one program
REDUCE_CHUNK = 16  # splits folded at once
PROGRAMS_PER_PROCESSOR = 4  # of the decode kernel; they share out its work
SCRATCH_BYTES = 256 << 20  # for the partial results of a captured step, at most
INTERPRETED_PROGRAMS = 3  # where there is no GPU: not a divisor of anything


@dataclass(frozen=True, slots=True)
class _Scratch:
    """Partial results of the decode kernel, of one layer at a time."""

    values: Tensor  # [items, H, Dv] float32, flat
    maxima: Tensor  # [items, H]
    sums: Tensor  # [items, H]


class TritonAttention:
    """Owned by one thread. Nothing here waits for the device, and nothing allocates but the result.

    A row's numbers depend on its own queries and KV alone: splits and tiles lie at absolute positions.
    """

    def __init__(self, pool: KvPool, num_heads: Seq[int], max_model_len: int) -> None:
        """`num_heads`: query heads of each layer; `max_model_len`: positions of the longest sequence."""
        self._pool = pool
        self.splits = SplitTable(max_model_len)
        self._num_heads = max(num_heads)
        layers = pool.layout.layers
        self._tilings = [tiling_for(layer, pool.layout.element_bytes) for layer in layers]
        self._max_value_size = max(layer.value_size for layer in layers)
        self.tile_rows: dict[int, int] = {}  # of a prefill tile, by query heads per KV head
        for heads, layer, tiling in zip(num_heads, layers, self._tilings, strict=True):
            share = heads // layer.kv_heads
            self.tile_rows[share] = min(tiling.prefill_rows, self.tile_rows.get(share, tiling.prefill_rows))
        self._precision = "ieee" if pool.dtype == torch.float32 else "tf32"  # without effect on 16-bit operands
        self._stride_block = pool.data.stride(0)
        self._plan: AttentionPlan | None = None
        self.reserve(1)
        self._scratch = self._reserved  # or larger, for one step
        self._nothing = torch.zeros(1, device=pool.device)  # stands for sinks where there are none
        on_gpu = pool.device.type == "cuda"
        processors = torch.cuda.get_device_properties(pool.device).multi_processor_count if on_gpu else 0
        self._num_programs = PROGRAMS_PER_PROCESSOR * processors or INTERPRETED_PROGRAMS

    def begin(self, batch: StepBatch) -> None:
        """Plan a packed batch; its KV is written by KvPool.write. One copy to the device per array."""
        starts = np.array(batch.starts, dtype=np.int64)
        lengths = np.array(batch.ends, dtype=np.int64) - starts
        host = plan_step(starts, lengths, self.splits, self.tile_rows)
        rows = int(batch.positions.shape[1])
        seats = np.full(rows, -1, dtype=np.int64)
        seats[: batch.num_tokens] = np.repeat(np.arange(len(lengths)), lengths)
        device = self._pool.device
        self.use(
            AttentionPlan(
                num_rows=rows,
                tables=batch.block_tables.to(device, torch.int32),
                positions=batch.positions[0],
                seats=torch.from_numpy(seats).to(device),
                decode_rows=torch.from_numpy(host.decode_rows).to(device),
                item_starts=torch.from_numpy(host.item_starts).to(device),
                items=torch.from_numpy(host.items).to(device),
                max_items=len(host.items),
                tiles={share: torch.from_numpy(tiles).to(device) for share, tiles in host.tiles.items()},
                covers_all_rows=rows == batch.num_tokens,
            )
        )

    def use(self, plan: AttentionPlan) -> None:
        """Attend by this plan until the next; called before the step's first layer."""
        self._plan = plan
        fits = plan.max_items <= self._reserved_items
        self._scratch = self._reserved if fits else self._make_scratch(plan.max_items)

    def reserve(self, max_items: int) -> None:
        """Keep scratch for so many items. Called before graphs are captured, never after: they know its address."""
        self._reserved_items, self._reserved = max_items, self._make_scratch(max_items)

    @property
    def affordable_items(self) -> int:
        """Items whose scratch takes SCRATCH_BYTES."""
        return SCRATCH_BYTES // (4 * self._num_heads * (self._max_value_size + 2))

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Put the step's keys and values where the plan's seats and positions say; padding rows write nothing.

        Shapes:  key [K, T, Dk], value [K, T, Dv], any strides but the last.
        """
        plan, facts, tiling = self._current(), self._pool.layout.layers[layer], self._tilings[layer]
        key, value = _with_dense_rows(key), _with_dense_rows(value)
        grid = (-(-plan.num_rows // WRITE_ROWS), facts.kv_heads)
        write_kernel[grid](
            key, value, self._pool.key(layer), self._pool.value(layer), plan.tables, plan.positions, plan.seats,
            plan.num_rows, key.stride(0), key.stride(1), value.stride(0), value.stride(1),
            plan.tables.stride(0), self._stride_block,
            ROWS=WRITE_ROWS, SLOTS=self._pool.layout.block_size, KEY_SIZE=facts.key_size, VALUE_SIZE=facts.value_size,
            KEY_PAD=tiling.key_pad, VALUE_PAD=tiling.value_pad,
        )  # fmt: skip

    def attend(self, query: Tensor, call: AttentionCall) -> Tensor:
        """See `AttentionBackend`."""
        plan, facts = self._current(), self._pool.layout.layers[call.layer]
        heads, rows, _ = query.shape
        assert rows == plan.num_rows and heads <= self._num_heads and heads % facts.kv_heads == 0
        make = torch.empty if plan.covers_all_rows else torch.zeros
        out = make(rows, heads, facts.value_size, dtype=query.dtype, device=query.device)
        query = _with_dense_rows(query)
        common = self._common(call, heads // facts.kv_heads)
        if len(plan.decode_rows):
            self._decode(plan, query, out, call, common)
        if len(plan.tiles[common["SHARE"]]):
            self._prefill(plan, query, out, call, common)
        return out

    def _decode(
        self, plan: AttentionPlan, query: Tensor, out: Tensor, call: AttentionCall, common: dict[str, Any]
    ) -> None:
        pool, scratch, tiling = self._pool, self._scratch, self._tilings[call.layer]
        num_rows = len(plan.decode_rows)
        share, window = common["SHARE"], common["WINDOW"]
        places = {"FIRST": FIRST_SPLIT, "PER_LEVEL": SPLITS_PER_LEVEL}
        decode_kernel[(self._num_programs,)](
            query, pool.key(call.layer), pool.value(call.layer), plan.tables, plan.positions, plan.seats,
            plan.decode_rows, plan.item_starts, plan.items, scratch.values, scratch.maxima, scratch.sums,
            num_rows, *_factors(call), query.stride(0), query.stride(1), plan.tables.stride(0), self._stride_block,
            SHARE_PAD=max(16, 1 << (share - 1).bit_length()), **common, **places,
            num_warps=4, num_stages=tiling.decode_stages,
        )  # fmt: skip
        reduce_kernel[(num_rows, out.shape[1])](
            out, self._sinks(call), plan.positions, plan.decode_rows, plan.item_starts,
            scratch.values, scratch.maxima, scratch.sums,
            HEADS=out.shape[1], VALUE_SIZE=out.shape[2], VALUE_PAD=tiling.value_pad, CHUNK=REDUCE_CHUNK,
            WINDOW=window, SINKS=call.sinks is not None, **places, num_warps=2,
        )  # fmt: skip

    def _prefill(
        self, plan: AttentionPlan, query: Tensor, out: Tensor, call: AttentionCall, common: dict[str, Any]
    ) -> None:
        pool, tiling = self._pool, self._tilings[call.layer]
        tiles = plan.tiles[common["SHARE"]]
        prefill_kernel[(len(tiles) // 3, common["KV_HEADS"])](
            query, out, self._sinks(call), pool.key(call.layer), pool.value(call.layer),
            plan.tables, plan.positions, plan.seats, tiles, *_factors(call),
            query.stride(0), query.stride(1), plan.tables.stride(0), self._stride_block,
            ROWS=self.tile_rows[common["SHARE"]], SINKS=call.sinks is not None, **common,
            num_warps=PREFILL_WARPS, num_stages=tiling.prefill_stages,
        )  # fmt: skip

    def _common(self, call: AttentionCall, share: int) -> dict[str, Any]:
        """What both attention kernels of a layer are compiled with."""
        facts, tiling = self._pool.layout.layers[call.layer], self._tilings[call.layer]
        return {
            "SHARE": share, "KV_HEADS": facts.kv_heads, "SLOTS": self._pool.layout.block_size,
            "KEY_SIZE": facts.key_size, "VALUE_SIZE": facts.value_size,
            "KEY_PAD": tiling.key_pad, "VALUE_PAD": tiling.value_pad, "TILE": tiling.tile,
            "WINDOW": call.window or 0, "SOFTCAP": call.softcap is not None, "PRECISION": self._precision,
        }  # fmt: skip

    def _sinks(self, call: AttentionCall) -> Tensor:
        return self._nothing if call.sinks is None else call.sinks

    def _current(self) -> AttentionPlan:
        assert self._plan is not None, "a layer attends before the step's plan is there"
        return self._plan

    def _make_scratch(self, items: int) -> _Scratch:
        count, device = items * self._num_heads, self._pool.device
        values = torch.empty(count * self._max_value_size, dtype=torch.float32, device=device)
        return _Scratch(values, torch.empty(count, device=device), torch.empty(count, device=device))


def _factors(call: AttentionCall) -> tuple[float, float]:
    """`inner` and `outer` of kernels/arithmetic.py `bent`."""
    if call.softcap is None:
        return 0.0, call.scale * LOG2E
    return call.scale / call.softcap, call.softcap * LOG2E


def _with_dense_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
