"""GPU pools over a transport that reads host memory: by way of a few pinned blocks on each side. Any topology works.

    source GPU pool ──> staging ── inner transport (gloo) ──> staging ──> target GPU pool

    chunk n of a pair, on both ends      0        1        2        3        4 ...
    region of the staging memory      [......] [......] [......] [......] [as 0]

A chunk is a frame's worth of blocks of one post. Both ends are given the same posts in the same order, so both know
every chunk's region without a word: over the wire a block goes by its place in the staging memory, by its index in the
transfer and by its true generation. A region is used again when its last chunk is over on that end; the inner
transport waits for the other end. NOT YET RUN ON A GPU; on the CPU it keeps the contract with host pools.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import mmap
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kv_transfer.transports.background import settled_in_spite_of_cancellation
from kv_transfer.transports.framing import FRAME_BYTES, Frame, cut_frames, give_tags
from kv_transfer.transports.interface import BlockMove, Receipt
from pdserve.errors import PeerLost, QueueFull, ServingError
from pdserve.kv_memory import KvMemory

REGIONS = 4
"""Of one chunk each: being copied, on the wire, arriving, one to spare."""
MAX_JOBS = 1024
"""Calls of send() or post() outstanding on one pair."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Blocks that are staged at once."""

    transfer_id: int
    frame: Frame  # where they truly lie
    slots: range  # of the staging memory
    staged: tuple[BlockMove, ...]  # the same blocks as the inner transport sees them
    receipt: Receipt | None  # of the post, to be settled with its last chunk


class StagingMemory(KvMemory):
    """A small pool in anonymous memory: nobody else maps it, so it needs no file, and goes with its last view."""

    def __init__(self, num_blocks: int, block_bytes: int) -> None:
        self.num_blocks = num_blocks
        self.block_bytes = block_bytes
        self.fd = -1
        self.data = memoryview(mmap.mmap(-1, num_blocks * block_bytes))
        self.generations = memoryview(mmap.mmap(-1, 8 * num_blocks)).cast("Q")


class Chunks:
    """Cuts posts into chunks; two of them that are given the same posts agree on everything but the true blocks."""

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._region_blocks = max(1, min(1024, FRAME_BYTES // block_bytes))
        self._numbers = itertools.count()
        self._tags = itertools.count(2, 2)

    def new_memory(self) -> KvMemory:
        """The staging memory of one end."""
        return StagingMemory(REGIONS * self._region_blocks, self._block_bytes)

    def cut(self, transfer_id: int, moves: Sequence[BlockMove], receipt: Receipt) -> Iterator[Chunk]:
        most = self._region_blocks
        for at in range(0, len(moves), most):
            some = moves[at : at + most]
            first = next(self._numbers) % REGIONS * most
            slots = range(first, first + len(some))
            tags = give_tags(slots, slots, self._block_bytes, self._tags)
            staged = tuple(
                BlockMove(move.index, tag, slot, move.source_generation, slot)
                for move, tag, slot in zip(some, tags, slots, strict=True)
            )
            yield Chunk(transfer_id, columns(some), slots, staged, receipt if at + most >= len(moves) else None)


def columns(moves: Sequence[BlockMove]) -> Frame:
    """Moves by columns, whatever their number."""
    frames = list(cut_frames(moves, 1))
    parts = ([getattr(frame, name) for frame in frames] for name in Frame.__slots__)
    return Frame(*(np.concatenate(part) for part in parts))


class Inner(Protocol):
    """An open end of the inner transport."""

    async def wait_lost(self) -> None: ...

    async def close(self) -> None: ...


Begin = Callable[[Chunk], Awaitable[Awaitable[None]]]
"""Gives a chunk to the inner transport; what it returns is awaited for its end."""
Finish = Callable[[Chunk], Awaitable[None]]
"""What is left to do when the inner transport is done with a chunk."""


class StagedPump:
    """Two tasks: one begins the chunks of all jobs in order, one finishes them in order. An error ends the pair."""

    def __init__(
        self, inner: Inner, block_bytes: int, begin: Begin, finish: Finish, release: Callable[[], None]
    ) -> None:
        """`release` is called once, at close, when nothing is copied any more."""
        self._inner = inner
        self._chunks = Chunks(block_bytes)
        self._begin = begin
        self._finish = finish
        self._release = release
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Queue[Chunk] = asyncio.Queue()
        self._begun: asyncio.Queue[tuple[Chunk, asyncio.Future[None]]] = asyncio.Queue()
        self._free_regions = asyncio.Semaphore(REGIONS)
        self._outstanding: dict[Receipt, None] = {}
        self._error: ServingError | None = None
        self._closing: asyncio.Future[None] | None = None
        self._is_lost = False
        self._watch_task = asyncio.ensure_future(self._watch())
        self._run_task = asyncio.ensure_future(self._run())

    def submit(self, transfer_id: int, moves: Sequence[BlockMove]) -> Receipt:
        """Queue a job. PeerLost when the pair is over, QueueFull when too many are outstanding. Does not block."""
        self.check_open()
        if len(self._outstanding) >= MAX_JOBS:
            raise QueueFull(f"{MAX_JOBS:,} transfers wait on one pair")
        receipt = Receipt(self._loop)
        self._outstanding[receipt] = None
        receipt.when_settled(lambda: self._outstanding.pop(receipt, None))
        for chunk in self._chunks.cut(transfer_id, moves, receipt):
            self._waiting.put_nowait(chunk)
        if not moves:
            receipt.settle(None)
        return receipt

    def check_open(self) -> None:
        """PeerLost when the pair is over."""
        if self._is_lost or self._error is not None or self._closing is not None:
            raise PeerLost("the pair is closed")

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await settled_in_spite_of_cancellation(self._closing)

    async def _close(self) -> None:
        await self._inner.close()  # settles what is under way
        self._run_task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._run_task
        await self._watch_task
        self._fail(PeerLost("the pair was closed"))
        self._release()
        await asyncio.sleep(0)  # receipts are settled by the loop

    async def _watch(self) -> None:
        """Refuse new jobs when the peer is gone; why those under way failed is for the inner transport to say."""
        await self._inner.wait_lost()
        self._is_lost = True

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._begin_all())
                group.create_task(self._finish_all())
        except* ServingError as errors:
            self._error = next(e for e in _leaves(errors) if isinstance(e, ServingError))
        except* Exception as errors:  # what CUDA raises
            self._error = PeerLost(f"staging failed: {next(_leaves(errors))}")
        assert self._error is not None
        await self._inner.close()
        self._fail(self._error)

    def _fail(self, error: ServingError) -> None:
        """Both tasks have ended: nothing is copied any more."""
        for receipt in list(self._outstanding):
            receipt.settle(error)

    async def _begin_all(self) -> None:
        while True:
            chunk = await self._waiting.get()
            await self._free_regions.acquire()  # in order, as they are finished: it is this chunk's own
            done = asyncio.ensure_future(await self._begin(chunk))
            done.add_done_callback(
                lambda future: future.cancelled() or future.exception()
            )  # re-raised, if anyone waits
            self._begun.put_nowait((chunk, done))

    async def _finish_all(self) -> None:
        while True:
            chunk, done = await self._begun.get()
            await done
            await self._finish(chunk)
            self._free_regions.release()
            if chunk.receipt is not None:
                chunk.receipt.settle(None)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
