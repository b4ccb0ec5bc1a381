"""Which transports a worker offers, best first."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cached_property
from typing import cast

from kv_transfer.transports.interface import PairInfo, Rendezvous, SourceChannel, TargetChannel, Transport
from kv_transfer.transports.shared_memory import SharedMemoryTransport
from pdserve.kv_memory import KvMemory

SAME_HOST_ONLY = frozenset({"shm"})
"""Names of transports that need one host."""


class DeferredTransport:
    """A transport whose module is imported when a pair first uses it.

    torch.distributed costs a second of start-up that a worker with shared memory never needs to pay.
    """

    def __init__(self, module: str, cls: str, name: str, *, pushed: bool) -> None:
        self._module, self._cls, self.name, self.pushed = module, cls, name, pushed

    @cached_property
    def _transport(self) -> Transport:
        return cast(Transport, getattr(importlib.import_module(self._module), self._cls)())

    def is_available(self, *, same_process: bool, same_host: bool) -> bool:
        return self._transport.is_available(same_process=same_process, same_host=same_host)

    async def open_source(self, pair: PairInfo, rendezvous: Rendezvous, memory: KvMemory) -> SourceChannel:
        return await self._transport.open_source(pair, rendezvous, memory)

    async def open_target(self, pair: PairInfo, rendezvous: Rendezvous, memory: KvMemory) -> TargetChannel:
        return await self._transport.open_target(pair, rendezvous, memory)


def make_transports(kv_transport: str) -> Mapping[str, Transport]:
    """The transports that `--kv-transport` allows, by name, in order of preference."""
    known: dict[str, Transport] = {
        "shm": SharedMemoryTransport(),
        "gloo": DeferredTransport("kv_transfer.transports.gloo", "GlooTransport", "gloo", pushed=True),
    }
    if kv_transport == "auto":
        return known
    if kv_transport not in known:
        raise ValueError(f"kv_transport is {kv_transport!r}; this worker has auto, {', '.join(known)}")
    return {kv_transport: known[kv_transport]}
