"""CUDA graphs for decode steps: one per batch size of a ladder, replayed with padding rows.

A graph reads its inputs at fixed places and repeats the kernels of one pass, so that a step costs the host one copy
and one launch, where eagerly it would launch some fifteen kernels per layer. NOT YET RUN ON HARDWARE; on a CPU queue
the same code calls the pass again instead, which tests everything but the capture.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.gpu.attention import TritonAttention
from engine.gpu.forward import ModelForward
from engine.gpu.host_reads import HostRead, no_host_reads
from engine.gpu.plan import AttentionPlan
from engine.gpu.queue import DeviceQueue
from engine.gpu.sampler import plain_choice
from engine.gpu.seats import Seats
from engine.gpu.splits import Int64s
from engine.gpu.staging import Stager, staged_size

log = logging.getLogger(__name__)


def batch_ladder(largest: int) -> list[int]:
    """1, 2, 4, 8, 16, 24, 32, ... up to `largest`, which is its last."""
    steps = [1, 2, 4, *range(8, largest, 8)]
    return [size for size in steps if size < largest] + [largest]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a pass gives: valid until the next one."""

    logits: Tensor  # [n, V]
    plain: Tensor  # [n] int64, see plain_choice


class DecodeGraphs:
    """Every batch size up to the largest; owned by one thread."""

    def __init__(self, queue: DeviceQueue, stager: Stager, forward: ModelForward, seats: Seats, largest: int) -> None:
        self._queue, self._stager, self._forward, self._seats = queue, stager, forward, seats
        self._splits = forward.attention.splits
        self._ladder = batch_ladder(largest)
        self._most_items = max(largest, forward.attention.affordable_items)  # a step with more runs eagerly
        self._replays: dict[int, Callable[[], Chosen]] = {}
        self._rows = torch.arange(largest, device=queue.device)

    @staticmethod
    def capacity(largest: int, attention: TritonAttention) -> int:
        """Integers of the largest step: what the stager must hold."""
        items = min(largest * attention.splits.max_splits, max(largest, attention.affordable_items))
        return staged_size([largest, largest, largest, largest + 1, items])

    def capture(self) -> bool:
        """Make every graph, the largest first, so that the others fit into its memory; False: the model does not allow.

        Runs the model with padding rows only: no KV is written. Called once, before the first step.
        """
        self._forward.attention.reserve(self._max_items(self._ladder[-1]))
        for size in reversed(self._ladder):
            act = self._act(size)
            try:
                if not self._replays:
                    act()  # compiles the kernels
                    with no_host_reads():
                        act()
                act()
                self._replays[size] = self._queue.capture(act)
            except (HostRead, RuntimeError) as error:
                log.warning("decode steps run without CUDA graphs: %s", error)
                self._replays.clear()
                return False
        return True

    def try_run(self, input_ids: Int64s, positions: Int64s, seats: Int64s) -> Chosen | None:
        """One token for each sequence, or None if no graph is large enough.

        Shapes:  all [B]; input_ids negative where the device knows the token; results hold B rows or more.
        """
        count = len(input_ids)
        size = next((size for size in self._ladder if size >= count), None)
        if size is None or size not in self._replays:
            return None
        if not self._fill(size, input_ids, positions, seats):
            return None
        return self._replays[size]()

    def _fill(self, size: int, input_ids: Int64s, positions: Int64s, seats: Int64s) -> bool:
        """Send a step, with padding rows, to where the graph of this size reads; False: too long for it."""
        count = len(input_ids)
        lengths = np.zeros(size, dtype=np.int64)
        lengths[:count] = positions + 1
        item_starts, items = self._splits.items(lengths)
        if len(items) > self._max_items(size):
            return False
        spare = (0, size - count)
        places = np.pad(seats, spare, constant_values=-1)  # padding: no KV is written or read
        parts = [np.pad(input_ids, spare), np.pad(positions, spare), places, item_starts, items]
        self._stager.stage(parts, may_move=False)
        return True

    def _act(self, size: int) -> Callable[[], Chosen]:
        """The pass over the stager's memory, as try_run fills it."""
        count = self._max_items(size)
        input_ids, positions, seats, item_starts, items = self._stager.place([size, size, size, size + 1, count])
        self._fill(size, *[np.zeros(0, dtype=np.int64)] * 3)
        rows = self._rows[:size]
        nothing = torch.zeros(0, dtype=torch.int64, device=self._queue.device)
        tiles = dict.fromkeys(self._forward.attention.tile_rows, nothing)
        plan = AttentionPlan(
            num_rows=size, tables=self._seats.tables, positions=positions, seats=seats, decode_rows=rows,
            item_starts=item_starts, items=items, max_items=count, tiles=tiles,
            covers_all_rows=True,
        )  # fmt: skip

        @torch.inference_mode()
        def act() -> Chosen:
            logits = self._forward(plan, self._seats.resolve(input_ids, seats), rows)
            plain = plain_choice(logits)
            self._seats.remember(seats, plain)
            return Chosen(logits, plain)

        return act

    def _max_items(self, size: int) -> int:
        return min(size * self._splits.max_splits, self._most_items)
