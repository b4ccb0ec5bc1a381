"""The other process: the source, which does what it is told until the wire ends."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from bench.transport.bare_gloo import bare_gloo
from bench.transport.blocks import TIMEOUT_S, filled, moves_between, pair_info, transport_named
from bench.transport.wire import Wire
from kv_transfer.transports import BlockMove, SourceChannel
from kv_transfer.transports.gloo_link import SOURCE_RANK, GlooDevice, GlooLink
from pdserve.kv_memory import KvMemory


class SourceEnd:
    """One pool, and one channel or bare link at a time."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._filled: KvMemory | None = None
        self._channel: SourceChannel | None = None
        self._link: GlooLink | None = None
        self._moves: list[BlockMove] = []
        self._device = GlooDevice("127.0.0.1")

    @property
    def _memory(self) -> KvMemory:
        assert self._filled is not None, "the first order is to fill a pool"
        return self._filled

    async def serve(self) -> None:
        """Order after order; each is answered when it is done."""
        while True:
            order = await asyncio.to_thread(self._wire.hear, "order")
            await self._do(order["do"], order)
            self._wire.tell("did", order["do"])

    async def _do(self, what: str, order: Mapping[str, Any]) -> None:
        match what:
            case "fill":
                self._filled = await asyncio.to_thread(filled, order["num_blocks"], order["block_bytes"])
            case "open":
                await self._open(order["what"])
            case "name":
                memory = self._memory
                self._moves = moves_between(memory.num_blocks, memory.block_bytes, order["tag"], order["scattered"])
            case "move":
                if self._link is not None:
                    await asyncio.to_thread(bare_gloo, self._link, self._memory, SOURCE_RANK, self._moves)
                elif self._channel is not None:
                    await self._channel.send(1, self._moves)
            case "close":
                await self._close()

    async def _open(self, what: str) -> None:
        info = pair_info(self._memory.block_bytes)
        if what == "bare gloo":
            device = self._device.get()
            self._link = await asyncio.to_thread(GlooLink, info, SOURCE_RANK, self._wire, device, TIMEOUT_S)
        else:
            self._channel = await transport_named(what).open_source(info, self._wire, self._memory)

    async def _close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
        if self._link is not None:
            await asyncio.to_thread(self._link.close)
        self._channel = self._link = None
