"""On one host: the target maps the source's pool read-only and copies each block once.

The generations around each copy already prove whose bytes were copied; digests, off unless asked for, also prove that
they are the bytes the source sees, at the price of hashing both.
"""

from __future__ import annotations

import asyncio
import queue
import struct
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import xxhash

from kv_transfer.frame import FLAG_DIGEST, Descriptor, expect, unpack
from kv_transfer.transports.background import Flag, call_in_thread
from kv_transfer.transports.faults import NO_FAULTS, Faults
from kv_transfer.transports.framing import MAX_FRAME_BLOCKS, Frame, runs
from kv_transfer.transports.interface import DEFAULT_TIMEOUT_S, PairInfo, Rendezvous
from kv_transfer.transports.pool_link import MAX_PACKET_BYTES, MappedPool, PoolLink, map_pool, offer_pool
from kv_transfer.transports.pull import PullSource, PullTarget
from pdserve.errors import PeerLost
from pdserve.kv_memory import KvMemory

_QUESTION = struct.Struct("<QI4x")  # transfer, tag; behind it an index and a source block per block, 64 bit each
assert _QUESTION.size + 16 * MAX_FRAME_BLOCKS <= MAX_PACKET_BYTES


class SharedMemoryTransport:
    """Fetches over mapped memory between two processes of one user on one host."""

    name = "shared_memory"
    pushed = False

    def __init__(
        self, *, digests: bool = False, timeout_s: float = DEFAULT_TIMEOUT_S, faults: Faults = NO_FAULTS
    ) -> None:
        """`digests` is the target's choice; a source always answers."""
        self._digests = digests
        self._timeout_s = timeout_s
        self._faults = faults

    def is_available(self, *, same_process: bool, same_host: bool) -> bool:
        return same_host

    async def open_source(self, pair: PairInfo, rendezvous: Rendezvous, memory: KvMemory) -> PullSource:
        assert pair.block_bytes == memory.block_bytes
        link = await call_in_thread(
            "shared-memory-open", lambda: offer_pool(pair, rendezvous, memory, self._timeout_s), PoolLink.close
        )
        lost = Flag(asyncio.get_running_loop())
        link.start(_Answers(pair, memory, link, self._faults).answer, lost.raise_)
        return PullSource("shared-memory", lost, link.close)

    async def open_target(self, pair: PairInfo, rendezvous: Rendezvous, memory: KvMemory) -> PullTarget:
        assert pair.block_bytes == memory.block_bytes
        mapped = await call_in_thread(
            "shared-memory-open", lambda: map_pool(pair, rendezvous, self._timeout_s), MappedPool.close
        )
        lost = Flag(asyncio.get_running_loop())
        questions = _Questions(pair, mapped.link, self._timeout_s)

        def ended() -> None:
            lost.raise_()
            questions.end()

        mapped.link.start(questions.receive, ended)
        ask = questions.ask if self._digests else None
        return PullTarget("shared-memory", mapped.pool, memory, lost, mapped.close, ask)


class _Answers:
    """The source's half of digests: hashes the blocks it is asked about."""

    def __init__(self, pair: PairInfo, memory: KvMemory, link: PoolLink, faults: Faults) -> None:
        self._pair = pair
        self._memory = memory
        self._generations = np.frombuffer(memory.generations, np.uint64)
        self._link = link
        self._faults = faults

    def answer(self, packet: bytes) -> None:
        """On the link's thread; PeerLost, which ends the link, when the question makes no sense."""
        if len(packet) <= _QUESTION.size or (len(packet) - _QUESTION.size) % 16:
            raise PeerLost("the target asked something else")
        transfer_id, tag = _QUESTION.unpack_from(packet)
        indices, sources = np.frombuffer(packet, np.int64, offset=_QUESTION.size).reshape(2, -1)
        if sources.min() < 0 or sources.max() >= self._memory.num_blocks:
            raise PeerLost(f"the target asked about block {sources.max():,} of {self._memory.num_blocks:,}")
        frame = Frame(np.full(len(sources), tag), indices, sources, self._generations[sources], sources)
        descriptor = replace(frame.describe(self._pair, transfer_id), digest=self._digest(frame), flags=FLAG_DIGEST)
        self._link.send(self._faults.alter(descriptor).pack())

    def _digest(self, frame: Frame) -> int:
        hashed = xxhash.xxh3_64()
        size = self._memory.block_bytes
        for first, end in runs(frame.sources, frame.sources):
            start = int(frame.sources[first]) * size
            payload = self._memory.data[start : start + (end - first) * size]
            hashed.update(payload)
            self._faults.after_digest(payload)
        return hashed.intdigest()


class _Questions:
    """The target's half: asks, waits and checks. Answers come in the order of the questions, of the copying thread."""

    def __init__(self, pair: PairInfo, link: PoolLink, timeout_s: float) -> None:
        self._pair = pair
        self._link = link
        self._timeout_s = timeout_s
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def receive(self, packet: bytes) -> None:
        self._answers.put(packet)

    def end(self) -> None:
        self._answers.put(None)

    def ask(self, transfer_id: int, frame: Frame) -> Callable[[], Descriptor]:
        """Ask for one frame's descriptor; the result waits for it and must be called."""
        columns = np.concatenate((frame.indices, frame.sources)).tobytes()
        self._link.send(_QUESTION.pack(transfer_id, frame.tag) + columns)
        return lambda: self._checked(frame.describe(self._pair, transfer_id))

    def _checked(self, expected: Descriptor) -> Descriptor:
        try:
            packet = self._answers.get(timeout=self._timeout_s)
        except queue.Empty:
            packet = None
        if packet is None:
            self._link.shutdown()  # a late answer must never meet a later question
            raise PeerLost(f"no digests from the source within {self._timeout_s:g} s")
        descriptor = unpack(packet)
        expect(descriptor, expected)
        return descriptor
