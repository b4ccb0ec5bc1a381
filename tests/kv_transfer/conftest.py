"""Two ends of a pair in one process: pools with random bytes, a rendezvous in memory, one entry per transport."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from kv_transfer.transports import (
    BlockMove,
    Faults,
    InProcessTransport,
    PairInfo,
    SharedMemoryTransport,
    SourceChannel,
    TargetChannel,
    Transport,
)
from kv_transfer.transports.gloo import GlooTransport
from pdserve.errors import PeerLost
from pdserve.kv_memory import KvMemory


class MemoryRendezvous:
    """One end of a rendezvous whose other end is in this process."""

    def __init__(self, own: dict[str, bytes], peer: dict[str, bytes], changed: threading.Condition) -> None:
        self._own, self._peer, self._changed = own, peer, changed

    @classmethod
    def couple(cls) -> tuple[MemoryRendezvous, MemoryRendezvous]:
        a: dict[str, bytes] = {}
        b: dict[str, bytes] = {}
        changed = threading.Condition()
        return cls(a, b, changed), cls(b, a, changed)

    def set(self, key: str, value: bytes) -> None:
        with self._changed:
            self._own[key] = value
            self._changed.notify_all()

    def get(self, key: str, timeout_s: float) -> bytes:
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._peer, timeout_s):
                raise PeerLost(f"nothing under {key} within {timeout_s:g} s")
            return self._peer[key]


@dataclass
class Pair:
    """Both ends, their pools, and the tags given so far."""

    info: PairInfo
    source: SourceChannel
    target: TargetChannel
    source_memory: KvMemory
    target_memory: KvMemory
    next_tag: int = 0
    random: random.Random = field(default_factory=lambda: random.Random(7))

    def moves(self, sources: Sequence[int], targets: Sequence[int], first: int = 0) -> list[BlockMove]:
        made = []
        for index, (source, target) in enumerate(zip(sources, targets, strict=True), first):
            generation = self.source_memory.generations[source]
            made.append(BlockMove(index, self.next_tag, source, generation, target))
            self.next_tag += 2
        return made

    def random_moves(self, count: int) -> list[BlockMove]:
        blocks = range(self.source_memory.num_blocks)
        return self.moves(self.random.sample(blocks, count), self.random.sample(blocks, count))

    async def move(self, transfer_id: int, moves: Sequence[BlockMove]) -> None:
        """Post, send where the transport is pushed, and wait for both."""
        receipt = self.target.post(transfer_id, moves)
        if self.target.pushed:
            await self.source.send(transfer_id, moves)
        await receipt.wait()

    def has_arrived(self, moves: Sequence[BlockMove]) -> bool:
        return all(self.source_memory.block(m.source_block) == self.target_memory.block(m.target_block) for m in moves)

    async def close(self) -> None:
        await asyncio.gather(self.source.close(), self.target.close())


def random_memory(num_blocks: int, block_bytes: int, seed: int) -> KvMemory:
    memory = KvMemory(num_blocks, block_bytes)
    memory.data[:] = np.random.default_rng(seed).bytes(len(memory.data))
    for block in range(num_blocks):
        memory.generations[block] = 1000 + block
    return memory


@dataclass(frozen=True)
class Wire:
    """One transport under test and how to make it."""

    name: str
    make: Callable[[Faults, float], Transport]
    checks_digest: bool

    def transport(self, faults: Faults | None = None, timeout_s: float = 5.0) -> Transport:
        return self.make(faults or Faults(), timeout_s)

    def new_pair(self, block_bytes: int) -> PairInfo:
        return new_pair(block_bytes)

    def rendezvous(self) -> tuple[MemoryRendezvous, MemoryRendezvous]:
        return MemoryRendezvous.couple()

    def memories(self, num_blocks: int, block_bytes: int) -> tuple[KvMemory, KvMemory]:
        return random_memory(num_blocks, block_bytes, 1), random_memory(num_blocks, block_bytes, 2)

    async def _open(
        self, sources: PairInfo | None, targets: PairInfo | None, timeout_s: float
    ) -> list[BaseException | None]:
        """What each end says to being opened with its own idea of the pair; None is success. All are closed again."""
        a, b = MemoryRendezvous.couple()
        transport = self.transport(timeout_s=timeout_s)
        memories = [random_memory(8, pair.block_bytes if pair else 64, 1) for pair in (sources, targets)]
        ends = [
            transport.open_source(sources, a, memories[0]) if sources else None,
            transport.open_target(targets, b, memories[1]) if targets else None,
        ]
        outcomes = await asyncio.gather(*(end for end in ends if end is not None), return_exceptions=True)
        for opened in outcomes:
            if not isinstance(opened, BaseException):
                await opened.close()
        return [o if isinstance(o, BaseException) else None for o in outcomes]

    async def open_mismatched(self, **wrong: object) -> list[BaseException | None]:
        """Source and target differ in these fields of PairInfo."""
        info = new_pair(64)
        return await self._open(info, replace(info, **wrong), 2.0)  # type: ignore[arg-type]

    async def open_alone(self, timeout_s: float) -> list[BaseException | None]:
        """A source without a target, then a target without a source."""
        return await self._open(new_pair(64), None, timeout_s) + await self._open(None, new_pair(64), timeout_s)

    @contextlib.asynccontextmanager
    async def pair(
        self, *, num_blocks: int = 64, block_bytes: int = 4096, faults: Faults | None = None, timeout_s: float = 5.0,
        info: PairInfo | None = None, memories: tuple[KvMemory, KvMemory] | None = None,
    ) -> AsyncIterator[Pair]:  # fmt: skip
        transport = self.transport(faults, timeout_s)
        source_memory, target_memory = memories or self.memories(num_blocks, block_bytes)
        info = info or new_pair(source_memory.block_bytes)
        a, b = MemoryRendezvous.couple()
        source, target = await asyncio.gather(
            transport.open_source(info, a, source_memory), transport.open_target(info, b, target_memory)
        )
        pair = Pair(info, source, target, source_memory, target_memory)
        try:
            yield pair
        finally:
            await pair.close()


def new_pair(block_bytes: int, epoch: int = 1) -> PairInfo:
    randomness = np.random.default_rng()
    return PairInfo(randomness.bytes(16), randomness.bytes(16), epoch, randomness.bytes(16), block_bytes)


WIRES = [
    Wire("in_process", lambda faults, timeout_s: InProcessTransport(timeout_s), False),
    Wire("shared_memory", lambda faults, t: SharedMemoryTransport(timeout_s=t, faults=faults), False),
    Wire(
        "shared_memory_digests", lambda faults, t: SharedMemoryTransport(digests=True, timeout_s=t, faults=faults), True
    ),
    Wire("gloo", lambda faults, t: GlooTransport(timeout_s=t, faults=faults), True),
]


def _fixture(name: str, wires: list[Wire]) -> object:
    @pytest.fixture(params=wires, ids=lambda wire: wire.name, name=name)
    def some_wire(request: pytest.FixtureRequest) -> Wire:
        return request.param

    return some_wire


wire = _fixture("wire", WIRES)
digest_wire = _fixture("digest_wire", [w for w in WIRES if w.checks_digest])
pushed_wire = _fixture("pushed_wire", [w for w in WIRES if w.transport().pushed])
fetching_wire = _fixture("fetching_wire", [w for w in WIRES if not w.transport().pushed])
