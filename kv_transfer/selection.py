"""Which transports a worker offers, best first."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Mapping
from typing import Any, cast

from kv_transfer.transports.gpu_choice import GPU_TRANSPORTS, GpuPool
from kv_transfer.transports.interface import PairInfo, Rendezvous, SourceChannel, TargetChannel, Transport
from kv_transfer.transports.shared_memory import SharedMemoryTransport
from pdserve.kv_memory import KvMemory

HOST_TRANSPORTS = ("shm", "gloo")


class DeferredTransport:
    """A transport whose module is imported, in a thread, when a pair first uses it.

    torch.distributed costs seconds of start-up that a worker with shared memory never needs to pay.
    """

    def __init__(self, make: Callable[[], Transport], name: str, *, pushed: bool) -> None:
        """`make` imports and constructs; it may take seconds and is called once, in a thread."""
        self._make, self.name, self.pushed = make, name, pushed
        self._loading = asyncio.Lock()
        self._loaded: Transport | None = None

    def load(self) -> Transport:
        """Import it now; blocks for seconds the first time."""
        loaded = self._loaded or self._make()
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


def make_transports(kv_transport: str, host: str, gpu: GpuPool | None = None) -> Mapping[str, Transport]:
    """The transports that `--kv-transport` allows, by name, in order of preference.

    `host`: the address of this machine that other workers reach, where gloo's pairs listen. `gpu`: the pool, where it
    lies on one; the KvMemory that pairs are opened with then holds its generations only.
    """
    known = HOST_TRANSPORTS if gpu is None else GPU_TRANSPORTS
    if kv_transport not in {"auto", *known}:
        raise ValueError(f"kv_transport is {kv_transport!r}; this worker has auto, {', '.join(known)}")
    names = known if kv_transport == "auto" else (kv_transport,)
    if gpu is not None:
        return {name: _on_gpu(name, host, gpu) for name in names if name != "nccl" or gpu.nccl is not None}
    gloo = DeferredTransport(_maker("gloo", "GlooTransport", host=host), "gloo", pushed=True)
    if kv_transport == "gloo":
        return {"gloo": gloo.load()}
    made: dict[str, Transport] = {"shm": SharedMemoryTransport(), "gloo": gloo}
    return {name: made[name] for name in names}


def _on_gpu(name: str, host: str, gpu: GpuPool) -> Transport:
    def pool_of(memory: KvMemory) -> Any:
        return gpu.blocks

    match name:
        case "cuda_ipc":
            return DeferredTransport(_maker("cuda_ipc", "CudaIpcTransport", pool_of), name, pushed=False)
        case "nccl":
            return DeferredTransport(_maker("nccl", "NcclTransport", pool_of, host=host), name, pushed=True)
        case _:
            return DeferredTransport(_maker("staged", "StagedTransport", pool_of, host=host), name, pushed=True)


def _maker(module: str, cls: str, *args: Any, **settings: Any) -> Callable[[], Transport]:
    def make() -> Transport:
        loaded = importlib.import_module(f"kv_transfer.transports.{module}")
        return cast(Transport, getattr(loaded, cls)(*args, **settings))

    return make
