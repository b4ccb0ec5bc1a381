"""This process: the target, which gives the orders and reads the clock."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from bench.transport.bare_gloo import bare_gloo
from bench.transport.blocks import TIMEOUT_S, filled, moves_between, pair_info, transport_named
from bench.transport.figures import GATES, Figure
from bench.transport.wire import Wire
from kv_transfer.transports import BlockMove
from kv_transfer.transports.gloo_link import TARGET_RANK, GlooDevice, GlooLink
from pdserve.kv_memory import KvMemory


class Bench:
    """Every figure is the best of the repeats."""

    def __init__(self, wire: Wire, repeats: int) -> None:
        self.wire = wire
        self.repeats = repeats
        self.figures: list[Figure] = []

    async def order(self, do: str, **rest: Any) -> None:
        self.wire.tell("order", {"do": do, **rest})

    async def done(self) -> None:
        await asyncio.to_thread(self.wire.hear, "did")

    async def block_size(self, total_bytes: int, block_bytes: int) -> None:
        """A plain copy, bare gloo and every transport."""
        num_blocks = total_bytes // block_bytes
        memory, local = filled(num_blocks, block_bytes), filled(num_blocks, block_bytes)
        await self.order("fill", num_blocks=num_blocks, block_bytes=block_bytes)
        await self.done()
        a, b = np.frombuffer(local.data, np.uint8), np.frombuffer(memory.data, np.uint8)
        self._record("memcpy", memory, [timed(lambda: np.copyto(b, a)) for _ in range(self.repeats)])
        await self.bare(memory)
        for what in GATES:
            await self.channel(what, memory)

    async def bare(self, memory: KvMemory) -> None:
        """Bare gloo, for blocks that lie scattered and in runs."""
        await self.order("open", what="bare gloo")
        info, device = pair_info(memory.block_bytes), GlooDevice("127.0.0.1")
        link = await asyncio.to_thread(GlooLink, info, TARGET_RANK, self.wire, device.get(), TIMEOUT_S)
        await self.done()

        async def move(moves: list[BlockMove]) -> None:
            await self.order("move")
            await asyncio.to_thread(bare_gloo, link, memory, TARGET_RANK, moves)

        await self._repeat("bare gloo", memory, move, pushed=True)
        await self.order("close")
        await asyncio.to_thread(link.close)
        await self.done()

    async def channel(self, what: str, memory: KvMemory) -> None:
        """One transport, for blocks that lie scattered and in runs."""
        await self.order("open", what=what)
        channel = await transport_named(what).open_target(pair_info(memory.block_bytes), self.wire, memory)
        await self.done()

        async def move(moves: list[BlockMove]) -> None:
            receipt = channel.post(1, moves)
            if channel.pushed:
                await self.order("move")
            await receipt.wait()

        await self._repeat(what, memory, move, pushed=channel.pushed)
        await self.order("close")
        await channel.close()
        await self.done()

    async def _repeat(
        self, what: str, memory: KvMemory, move: Callable[[list[BlockMove]], Awaitable[None]], *, pushed: bool
    ) -> None:
        """`pushed`: the source has a part in each move, so it is told which blocks before the clock starts."""
        tags = itertools.count(0, 2 * memory.num_blocks)
        for scattered in (True, False):
            seconds = []
            for tag in itertools.islice(tags, self.repeats):
                moves = moves_between(memory.num_blocks, memory.block_bytes, tag, scattered)
                if pushed:
                    await self.order("name", tag=tag, scattered=scattered)
                    await self.done()
                began = time.perf_counter()
                await move(moves)
                seconds.append(time.perf_counter() - began)
                if pushed:
                    await self.done()
            self._record(what, memory, seconds, "scattered" if scattered else "runs")

    def _record(self, what: str, memory: KvMemory, seconds: list[float], placement: str = "") -> None:
        best = min(seconds)
        self.figures.append(Figure(what, placement, memory.block_bytes, best, len(memory.data) / best / 1e9))


def timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began
