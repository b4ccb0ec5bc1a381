"""The target's end where it can see the source's memory: it copies by itself, the source has nothing to do."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import xxhash

from kv_transfer.frame import Descriptor
from kv_transfer.transports.background import Closing, Flag, JobThread
from kv_transfer.transports.checks import StaleBlock, check_generations
from kv_transfer.transports.framing import Bytes, Frame, Generations, cut_frames, runs
from kv_transfer.transports.interface import BlockMove, ChannelStats, Receipt
from pdserve.errors import PeerLost, ServingError, TransferCorrupt
from pdserve.kv_memory import KvMemory

SPAN_BYTES = 1 << 20
"""Copied at once: small enough to be hashed from the processor's cache."""

ASKED_AHEAD = 2
"""Frames asked about: the source hashes the next one while this one is copied."""


class KvBlocks(Protocol):
    """A pool as its readers see it: pdserve.kv_memory.KvMemory or MappedKvMemory."""

    num_blocks: int
    block_bytes: int
    data: memoryview
    generations: memoryview  # [num_blocks] of unsigned 64 bit


@dataclass(frozen=True, slots=True)
class _Fetch:
    transfer_id: int
    moves: tuple[BlockMove, ...]
    receipt: Receipt = field(compare=False)


Ask = Callable[[int, Frame], Callable[[], Descriptor]]
"""Asks the source for a frame's checked descriptor; calling what it returns waits for it. PeerLost, TransferCorrupt."""


class PullTarget:
    """A TargetChannel that copies from `source` on a thread.

    The copies of a frame are enclosed by two looks at the source's generations: the source raises a block's before its
    next owner writes, so equal before and after means that the copy is of the block that was named. With `ask` the
    bytes that arrived are also hashed and compared with what the source hashed, which it does one frame ahead. A
    refused block fails its receipt only.
    """

    pushed = False

    def __init__(
        self,
        name: str,
        source: KvBlocks,
        memory: KvMemory,
        lost: Flag,
        release: Callable[[], None],
        ask: Ask | None = None,
    ) -> None:
        """`lost` is raised when the source goes; `release` lets go of `source` and is called once, at close."""
        assert source.block_bytes == memory.block_bytes
        self._loop = asyncio.get_running_loop()
        self._source = source
        self._memory = memory
        self._from: Bytes | None = np.frombuffer(source.data, np.uint8)
        self._to: Bytes | None = np.frombuffer(memory.data, np.uint8)
        self._generations: Generations | None = np.asanyarray(source.generations)
        self._lost = lost
        self._release = release
        self._ask = ask
        self._stats = ChannelStats()
        self._jobs: JobThread[_Fetch] = JobThread(f"{name}-copy", self._fetch)
        self._closing = Closing(f"{name}-close", self._close)

    @property
    def stats(self) -> ChannelStats:
        return self._stats

    def post(self, transfer_id: int, moves: Sequence[BlockMove]) -> Receipt:
        """Fetch these blocks. PeerLost when the pair is over, QueueFull when too many fetches wait."""
        if self._lost.is_raised or self._closing.has_begun:
            raise PeerLost("the pair is closed")
        for move in moves:
            assert 0 <= move.target_block < self._memory.num_blocks
        receipt = Receipt(self._loop)
        self._jobs.submit(_Fetch(transfer_id, tuple(moves), receipt))
        return receipt

    async def wait_lost(self) -> None:
        await self._lost.wait()

    async def close(self) -> None:
        await self._closing.run()

    def _close(self) -> None:
        self._lost.raise_()  # also stops the running fetch at its next copy
        for fetch in self._jobs.stop():
            fetch.receipt.settle(PeerLost("the pair was closed"))
        self._jobs.join()
        self._from = self._to = self._generations = None
        self._release()

    def _fetch(self, fetch: _Fetch) -> None:
        began = time.perf_counter()
        try:
            self._copy_all(fetch)
            error: ServingError | None = None
        except ServingError as refused:
            error = refused
        except Exception as unforeseen:  # the thread serves other transfers: tell this one's owner instead
            error = PeerLost(f"copy failed: {unforeseen}")
        moved = len(fetch.moves) if error is None else 0
        self._stats = replace(
            self._stats,
            stale_blocks=self._stats.stale_blocks + isinstance(error, StaleBlock),
            corrupt_blocks=self._stats.corrupt_blocks + (type(error) is TransferCorrupt),
            moved_bytes=self._stats.moved_bytes + moved * self._memory.block_bytes,
            moved_blocks=self._stats.moved_blocks + moved,
            busy_s=self._stats.busy_s + time.perf_counter() - began,
        )
        fetch.receipt.settle(error)

    def _copy_all(self, fetch: _Fetch) -> None:
        frames = list(cut_frames(fetch.moves, self._memory.block_bytes))
        for frame in frames:
            self._check(frame)
        answers: deque[Callable[[], Descriptor]] = deque()
        try:
            for position, frame in enumerate(frames):
                if self._ask is not None:
                    unasked = frames[position + len(answers) : position + ASKED_AHEAD]
                    answers += [self._ask(fetch.transfer_id, ahead) for ahead in unasked]
                told = answers.popleft()().digest if answers else None
                digest = self._copy(frame)
                check_generations(frame, self._generations)
                if digest != told:
                    raise TransferCorrupt(
                        f"blocks {frame.indices[0]:,}+{len(frame):,} of transfer {fetch.transfer_id:,} "
                        "have another digest"
                    )
        finally:
            for answer in answers:  # none may be left for a later question
                with contextlib.suppress(ServingError):
                    answer()

    def _copy(self, frame: Frame) -> int | None:
        """Copy runs of neighbours together; the digest of what arrived, hashed while it is in the cache."""
        assert self._from is not None and self._to is not None
        size = self._memory.block_bytes
        hashed = xxhash.xxh3_64() if self._ask is not None else None
        for first, end in runs(frame.sources, frame.targets):
            if self._lost.is_raised:
                raise PeerLost("the source is gone")
            source, target = int(frame.sources[first]) * size, int(frame.targets[first]) * size
            for offset in range(0, (end - first) * size, SPAN_BYTES):
                length = min(SPAN_BYTES, (end - first) * size - offset)
                arrived = self._to[target + offset : target + offset + length]
                np.copyto(arrived, self._from[source + offset : source + offset + length])
                if hashed is not None:
                    hashed.update(arrived.data)
        return None if hashed is None else hashed.intdigest()

    def _check(self, frame: Frame) -> None:
        """Before anything of the source is touched."""
        outside = (frame.sources < 0) | (frame.sources >= self._source.num_blocks)
        if outside.any():
            block = frame.sources[outside.argmax()]
            raise TransferCorrupt(f"source block {block:,} of a pool of {self._source.num_blocks:,}")
        check_generations(frame, self._generations)


class PullSource:
    """A SourceChannel whose target fetches: nothing to send, only to be there and to end."""

    def __init__(self, name: str, lost: Flag, release: Callable[[], None]) -> None:
        """`release` ends the link so that the target notices; it may block and is called once, at close."""
        self._lost = lost
        self._release = release
        self._closing = Closing(f"{name}-close", self._close)

    @property
    def stats(self) -> ChannelStats:
        return ChannelStats()

    async def send(self, transfer_id: int, moves: Sequence[BlockMove]) -> None:
        raise AssertionError("the target of this transport fetches by itself")

    async def wait_lost(self) -> None:
        await self._lost.wait()

    async def close(self) -> None:
        await self._closing.run()

    def _close(self) -> None:
        self._lost.raise_()
        self._release()
