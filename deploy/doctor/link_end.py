"""One end of a link as the doctor measures it: a worker's pool and its real transports, without an engine."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kv_transfer.notices import Identity
from kv_transfer.selection import make_transports
from kv_transfer.transports.framing import give_tags
from kv_transfer.transports.gpu_choice import GpuPool
from kv_transfer.transports.interface import BlockMove, PairInfo, Transport
from pdserve.ids import host_id
from pdserve.kv_memory import KvMemory

REPEATS = 5
OPEN_TIMEOUT_S = 15.0
MakeTransports = Callable[[str, str, GpuPool | None], Mapping[str, Transport]]


@dataclass(frozen=True, slots=True)
class ProbeStart:
    """What a probe is told first."""

    worker_id: str
    device: str  # "cpu" or "cuda:N"
    kv_transport: str
    host: str  # where gloo listens
    num_blocks: int
    block_bytes: int
    links: Mapping[str, int]  # worker at the other end -> inherited socket


@dataclass(frozen=True, slots=True)
class LinkFigure:
    """One link as it was found; rates are the best of some repeats."""

    src: str
    dst: str
    wanted: str = ""  # the best transport that both ends offer
    transport: str = ""  # that was used; empty: none
    refused: tuple[str, ...] = ()  # "NAME: why", of better ones that could not be opened
    bytes_per_second: float = 0.0
    latency_s: float = 0.0  # one block, median
    limit: str = ""  # what this machine could do at best: memcpy, loopback TCP
    limit_bytes_per_second: float = 0.0
    error: str = ""  # why it could not be measured


class Probe:
    """A pool, its transports, and the wires to the other ends."""

    def __init__(self, start: ProbeStart, transports: MakeTransports = make_transports) -> None:
        self.start = start
        self.memory = KvMemory(start.num_blocks, start.block_bytes)
        gpu = _gpu_pool(start) if start.device != "cpu" else None
        if gpu is None:
            self.memory.make_resident()
            self.memory.data[:] = secrets.token_bytes(4096) * (len(self.memory.data) // 4096)
        self.reaches = gpu.reaches if gpu is not None else lambda uuid: False
        self.transports = transports(start.kv_transport, start.host, gpu)
        gpu_uuid, nccl = (gpu.gpu_uuid, gpu.nccl) if gpu is not None else ("", None)
        boot_id = secrets.token_bytes(16)
        self.identity = Identity(start.worker_id, boot_id, b"", start.block_bytes, host_id(), gpu_uuid, nccl)

    def moves(self, count: int, tag: int) -> list[BlockMove]:
        """The first blocks, to the same places: both ends make the same list."""
        ids = list(range(count))
        tags = give_tags(ids, ids, self.start.block_bytes, itertools.count(tag, 2))
        return [BlockMove(i, t, i, 0, i) for i, t in zip(ids, tags, strict=True)]

    def hello(self) -> dict[str, Any]:
        """What a source says first."""
        nccl = self.identity.nccl or (0, 0)
        return {
            "transports": list(self.transports),
            "host_id": self.identity.host_id,
            "gpu_uuid": self.identity.gpu_uuid,
            "nccl_major": nccl[0],
            "nccl_minor": nccl[1],
            "source_boot_id": self.identity.boot_id.hex(),
        }


def _gpu_pool(start: ProbeStart) -> GpuPool:
    import torch

    from worker.gpu_card import CudaCard

    card = CudaCard(torch.device(start.device))
    blocks = torch.zeros((start.num_blocks, start.block_bytes), dtype=torch.uint8, device=start.device)
    return GpuPool(blocks, card.gpu_uuid, card.nccl, card.reaches)


def pair_of(order: Mapping[str, Any]) -> PairInfo:
    """What both ends know of their pair, out of the order to open it."""
    source, target, nonce = (bytes.fromhex(order[name]) for name in ("source", "target", "nonce"))
    return PairInfo(source, target, order["epoch"], nonce, order["block_bytes"])


def reason(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
