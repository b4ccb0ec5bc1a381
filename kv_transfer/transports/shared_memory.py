"""On one host: the target maps the source's pool read-only and copies each block once.

The generations around each copy already prove whose bytes were copied; digests, off unless asked for, also prove that
they are the bytes the source sees, at the price of hashing both.
"""

from __future__ import annotations

import asyncio
import queue
import struct
from collections.abc import Sequence

from kv_transfer.frame import DESCRIPTOR_BYTES, Descriptor, FrameKind, expect, payload_digest, unpack
from kv_transfer.transports.background import Flag, call_in_thread
from kv_transfer.transports.faults import NO_FAULTS, Faults
from kv_transfer.transports.interface import DEFAULT_TIMEOUT_S, BlockMove, PairInfo, Rendezvous
from kv_transfer.transports.pool_link import MAX_PACKET_BYTES, MappedPool, PoolLink, map_pool, offer_pool
from kv_transfer.transports.pull import PullSource, PullTarget
from pdserve.errors import PeerLost, TransferCorrupt
from pdserve.kv_memory import KvMemory

_QUESTION = struct.Struct("<QIIQ")  # transfer, index, tag, source block
MAX_QUESTIONS = min(64, MAX_PACKET_BYTES // DESCRIPTOR_BYTES)
"""Blocks asked about in one packet."""


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
        describe = questions.describe if self._digests else None
        return PullTarget("shared-memory", mapped.pool, memory, lost, mapped.close, describe)


class _Answers:
    """The source's half of digests: hashes the blocks it is asked about."""

    def __init__(self, pair: PairInfo, memory: KvMemory, link: PoolLink, faults: Faults) -> None:
        self._pair = pair
        self._memory = memory
        self._link = link
        self._faults = faults

    def answer(self, packet: bytes) -> None:
        """On the link's thread; PeerLost, which ends the link, when the questions make no sense."""
        if len(packet) % _QUESTION.size:
            raise PeerLost("the target asked something else")
        self._link.send(b"".join(self._describe(*question).pack() for question in _QUESTION.iter_unpack(packet)))

    def _describe(self, transfer_id: int, index: int, tag: int, block: int) -> Descriptor:
        if block >= self._memory.num_blocks:
            raise PeerLost(f"the target asked about block {block:,} of {self._memory.num_blocks:,}")
        payload = self._memory.block(block)
        descriptor = Descriptor(
            kind=FrameKind.BLOCK, nonce=self._pair.nonce, epoch=self._pair.epoch, transfer_id=transfer_id,
            index=index, tag=tag, source_block=block, source_generation=self._memory.generations[block],
            length=len(payload), digest=payload_digest(payload),
        )  # fmt: skip
        self._faults.after_digest(payload)
        return self._faults.alter(descriptor)


class _Questions:
    """The target's half: asks, waits and checks. One question at a time, from the copying thread."""

    def __init__(self, pair: PairInfo, link: PoolLink, timeout_s: float) -> None:
        self._pair = pair
        self._link = link
        self._timeout_s = timeout_s
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def receive(self, packet: bytes) -> None:
        self._answers.put(packet)

    def end(self) -> None:
        self._answers.put(None)

    def describe(self, transfer_id: int, moves: Sequence[BlockMove]) -> Sequence[Descriptor]:
        described: list[Descriptor] = []
        for first in range(0, len(moves), MAX_QUESTIONS):
            described += self._ask(transfer_id, moves[first : first + MAX_QUESTIONS])
        return described

    def _ask(self, transfer_id: int, moves: Sequence[BlockMove]) -> list[Descriptor]:
        self._link.send(b"".join(_QUESTION.pack(transfer_id, m.index, m.tag, m.source_block) for m in moves))
        try:
            packet = self._answers.get(timeout=self._timeout_s)
        except queue.Empty:
            packet = None
        if packet is None:
            self._link.shutdown()  # a late answer must never meet a later question
            raise PeerLost(f"no digests from the source within {self._timeout_s:g} s")
        if len(packet) != DESCRIPTOR_BYTES * len(moves):
            raise TransferCorrupt(f"{len(packet):,} bytes of descriptors for {len(moves):,} blocks")
        frames = (packet[i : i + DESCRIPTOR_BYTES] for i in range(0, len(packet), DESCRIPTOR_BYTES))
        described = [unpack(frame) for frame in frames]
        for move, descriptor in zip(moves, described, strict=True):
            expect(descriptor, self._expected(transfer_id, move))
        return described

    def _expected(self, transfer_id: int, move: BlockMove) -> Descriptor:
        return Descriptor(
            kind=FrameKind.BLOCK, nonce=self._pair.nonce, epoch=self._pair.epoch, transfer_id=transfer_id,
            index=move.index, tag=move.tag, source_block=move.source_block,
            source_generation=move.source_generation, length=self._pair.block_bytes,
        )  # fmt: skip
