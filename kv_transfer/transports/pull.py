"""The target's end where it can see the source's memory: it copies by itself, the source has nothing to do."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import xxhash

from kv_transfer.frame import Descriptor
from kv_transfer.transports.background import Closing, Flag
from kv_transfer.transports.checks import check_generations, check_sources
from kv_transfer.transports.fetching import FetchingTarget
from kv_transfer.transports.framing import Bytes, Frame, Generations, cut_frames, runs
from kv_transfer.transports.interface import BlockMove, ChannelStats
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


Ask = Callable[[int, Frame], Callable[[], Descriptor]]
"""Asks the source for a frame's checked descriptor; calling what it returns waits for it. PeerLost, TransferCorrupt."""


class PullTarget(FetchingTarget):
    """A TargetChannel that copies from `source` on a thread."""

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
        super().__init__(name, HostCopies(source, memory, lost, ask), lost, release)


class HostCopies:
    """Copies between two pools in host memory.

    The copies of a frame are enclosed by two looks at the source's generations: the source raises a block's before its
    next owner writes, so equal before and after means that the copy is of the block that was named. With `ask` the
    bytes that arrived are also hashed and compared with what the source hashed, which it does one frame ahead.
    """

    def __init__(self, source: KvBlocks, memory: KvMemory, lost: Flag, ask: Ask | None) -> None:
        assert source.block_bytes == memory.block_bytes
        self.num_blocks, self.block_bytes = memory.num_blocks, memory.block_bytes
        self._num_sources = source.num_blocks
        self._from: Bytes | None = np.frombuffer(source.data, np.uint8)
        self._to: Bytes | None = np.frombuffer(memory.data, np.uint8)
        self._generations: Generations | None = np.asanyarray(source.generations)
        self._lost = lost
        self._ask = ask

    def let_go(self) -> None:
        self._from = self._to = self._generations = None

    def copy(self, transfer_id: int, moves: Sequence[BlockMove]) -> None:
        frames = list(cut_frames(moves, self.block_bytes))
        for frame in frames:  # before anything of the source is touched
            check_sources(frame, self._num_sources)
            check_generations(frame, self._generations)
        answers: deque[Callable[[], Descriptor]] = deque()
        try:
            for position, frame in enumerate(frames):
                if self._ask is not None:
                    unasked = frames[position + len(answers) : position + ASKED_AHEAD]
                    answers += [self._ask(transfer_id, ahead) for ahead in unasked]
                told = answers.popleft()().digest if answers else None
                digest = self._copy(frame)
                check_generations(frame, self._generations)
                if digest != told:
                    raise TransferCorrupt(
                        f"blocks {frame.indices[0]:,}+{len(frame):,} of transfer {transfer_id:,} have another digest"
                    )
        finally:
            for answer in answers:  # none may be left for a later question
                with contextlib.suppress(ServingError):
                    answer()

    def _copy(self, frame: Frame) -> int | None:
        """Copy runs of neighbours together; the digest of what arrived, hashed while it is in the cache."""
        assert self._from is not None and self._to is not None
        size = self.block_bytes
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
