"""Which transports a worker offers, best first."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping
from typing import cast

from kv_transfer.transports.interface import PairInfo, Rendezvous, SourceChannel, TargetChannel, Transport
from kv_transfer.transports.shared_memory import SharedMemoryTransport
from pdserve.kv_memory import KvMemory


class DeferredTransport:
    """A transport whose module is imported, in a thread, when a pair first uses it.

    torch.distributed costs seconds of start-up that a worker with shared memory never needs to pay.
    """

    def __init__(self, module: str, cls: str, name: str, *, pushed: bool, host: str) -> None:
        self._module, self._cls, self.name, self.pushed, self._host = module, cls, name, pushed, host
        self._loading = asyncio.Lock()
        self._loaded: Transport | None = None

    def load(self) -> Transport:
        """Import it now; blocks for seconds the first time."""
        loaded = self._loaded or cast(
            Transport, getattr(importlib.import_module(self._module), self._cls)(host=self._host)
        )
        self._loaded = loaded
        return loaded

    async def _transport(self) -> Transport:
        async with self._loading:
            return await asyncio.to_thread(self.load)

    def is_available(self, *, same_process: bool, same_host: bool) -> bool:
        return True

    async def open_source(self, pair: PairInfo, rendezvous: Rendezvous, memory: KvMemory) -> SourceChannel:
        return await (await self._transport()).open_source(pair, rendezvous, memory)

    async def open_target(self, pair: PairInfo, rendezvous: Rendezvous, memory: KvMemory) -> TargetChannel:
        return await (await self._transport()).open_target(pair, rendezvous, memory)


def make_transports(kv_transport: str, host: str) -> Mapping[str, Transport]:
    """The transports that `--kv-transport` allows, by name, in order of preference.

    `host`: the address of this machine that other workers reach, where gloo's pairs listen.
    """
    gloo = DeferredTransport("kv_transfer.transports.gloo", "GlooTransport", "gloo", pushed=True, host=host)
    match kv_transport:
        case "auto":
            return {"shm": SharedMemoryTransport(), "gloo": gloo}
        case "shm":
            return {"shm": SharedMemoryTransport()}
        case "gloo":
            return {"gloo": gloo.load()}
        case _:
            raise ValueError(f"kv_transport is {kv_transport!r}; this worker has auto, shm, gloo")
