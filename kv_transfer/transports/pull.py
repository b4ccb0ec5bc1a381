"""The target's end where it can see the source's memory: it copies by itself, the source has nothing to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kv_transfer.frame import Descriptor, payload_digest
from kv_transfer.transports.background import Closing, Flag, JobThread
from kv_transfer.transports.interface import BlockMove, ChannelStats, Receipt
from pdserve.errors import PeerLost, ServingError, TransferCorrupt
from pdserve.kv_memory import KvMemory

MAX_RUN_BYTES = 16 << 20
"""Longest single copy: bounds how long a close waits."""


class KvBlocks(Protocol):
    """A pool as its readers see it: pdserve.kv_memory.KvMemory or MappedKvMemory."""

    num_blocks: int
    block_bytes: int
    data: memoryview
    generations: memoryview  # [num_blocks] of unsigned 64 bit


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring moves whose source blocks and target blocks are both consecutive: one copy."""

    moves: tuple[BlockMove, ...]

    @property
    def source_block(self) -> int:
        return self.moves[0].source_block

    @property
    def target_block(self) -> int:
        return self.moves[0].target_block


def coalesce(moves: Sequence[BlockMove], max_blocks: int) -> Iterator[Run]:
    """Cut moves into runs of at most `max_blocks`, in order."""
    first = 0
    for i in range(1, len(moves) + 1):
        if (
            i == len(moves)
            or i - first == max_blocks
            or moves[i].source_block != moves[i - 1].source_block + 1
            or moves[i].target_block != moves[i - 1].target_block + 1
        ):
            yield Run(tuple(moves[first:i]))
            first = i


class _Stale(TransferCorrupt):
    """The generation had moved on."""


@dataclass(frozen=True, slots=True)
class _Fetch:
    transfer_id: int
    moves: tuple[BlockMove, ...]
    receipt: Receipt = field(compare=False)


Describe = Callable[[int, Sequence[BlockMove]], Sequence[Descriptor]]
"""Asks the source for checked descriptors, one per move in order. Blocks; PeerLost or TransferCorrupt."""


class PullTarget:
    """A TargetChannel that copies from `source` on a thread.

    Each copy is enclosed by two looks at the source's generations: the source raises a block's before its next owner
    writes, so equal before and after means that the copy is of the block that was named. With `describe` the bytes
    that arrived are also hashed and compared with what the source hashed. A refused block fails its receipt only.
    """

    pushed = False

    def __init__(
        self,
        name: str,
        source: KvBlocks,
        memory: KvMemory,
        lost: Flag,
        release: Callable[[], None],
        describe: Describe | None = None,
    ) -> None:
        """`lost` is raised when the source goes; `release` lets go of `source` and is called once, at close."""
        assert source.block_bytes == memory.block_bytes
        self._loop = asyncio.get_running_loop()
        self._source = source
        self._memory = memory
        self._from: npt.NDArray[np.uint8] | None = np.frombuffer(source.data, np.uint8)
        self._to: npt.NDArray[np.uint8] | None = np.frombuffer(memory.data, np.uint8)
        self._lost = lost
        self._release = release
        self._describe = describe
        self._max_blocks = max(1, MAX_RUN_BYTES // memory.block_bytes)
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
        self._from = self._to = None
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
            stale_blocks=self._stats.stale_blocks + isinstance(error, _Stale),
            corrupt_blocks=self._stats.corrupt_blocks + (type(error) is TransferCorrupt),
            moved_bytes=self._stats.moved_bytes + moved * self._memory.block_bytes,
            moved_blocks=self._stats.moved_blocks + moved,
            busy_s=self._stats.busy_s + time.perf_counter() - began,
        )
        fetch.receipt.settle(error)

    def _copy_all(self, fetch: _Fetch) -> None:
        for move in fetch.moves:
            if not 0 <= move.source_block < self._source.num_blocks:
                raise TransferCorrupt(f"source block {move.source_block:,} of a pool of {self._source.num_blocks:,}")
        self._check_generations(fetch.moves)
        described = self._describe(fetch.transfer_id, fetch.moves) if self._describe is not None else ()
        for run in coalesce(fetch.moves, self._max_blocks):
            if self._lost.is_raised:
                raise PeerLost("the source is gone")
            self._check_generations(run.moves)
            self._copy(run)
            self._check_generations(run.moves)
        for move, descriptor in zip(fetch.moves, described, strict=bool(described)):
            if payload_digest(self._memory.block(move.target_block)) != descriptor.digest:
                raise TransferCorrupt(f"block {move.index:,} of transfer {fetch.transfer_id:,} has another digest")

    def _copy(self, run: Run) -> None:
        assert self._from is not None and self._to is not None
        size = len(run.moves) * self._memory.block_bytes
        source = run.source_block * self._memory.block_bytes
        target = run.target_block * self._memory.block_bytes
        np.copyto(self._to[target : target + size], self._from[source : source + size])

    def _check_generations(self, moves: Sequence[BlockMove]) -> None:
        for move in moves:
            actual = self._source.generations[move.source_block]
            if actual != move.source_generation:
                raise _Stale(
                    f"source block {move.source_block:,} is of generation {actual:,}, not {move.source_generation:,}"
                )


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
