"""The target's end where its GPU can read the source's pool: it copies by itself, on a stream beside the engine's."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from kv_transfer.transports.background import Closing, Flag, JobThread
from kv_transfer.transports.checks import StaleBlock, check_generations
from kv_transfer.transports.framing import Frame, Generations, cut_frames
from kv_transfer.transports.gpu_copies import CopyQueue, Mark, copy_blocks
from kv_transfer.transports.interface import BlockMove, ChannelStats, Receipt
from pdserve.errors import PeerLost, ServingError, TransferCorrupt

AHEAD = 2
"""Frames given to the device before the first of them is waited for: it never runs dry, and an end is soon noticed."""


@dataclass(frozen=True, slots=True)
class _Fetch:
    transfer_id: int
    moves: tuple[BlockMove, ...]
    receipt: Receipt = field(compare=False)


class CudaIpcTarget:
    """A TargetChannel that copies out of a mapped pool.

    A frame's copy is enclosed by two looks at its generations, which lie in host memory: the second one is taken when
    the copy is over on the device, not when it was given. The source raises a generation on the host before it gives
    the next owner's work to its GPU, so equal before and after means that the copy is of the block that was named.
    Whatever happens, a receipt is settled only when every copy that was given for it is over.
    """

    pushed = False

    def __init__(
        self, source: Tensor, generations: memoryview, target: Tensor, queue: CopyQueue, lost: Flag,
        release: Callable[[], None],
    ) -> None:  # fmt: skip
        """`source`, `target`: pools as of gpu_copies.as_words. `lost` is raised when the source goes; `release` lets go
        of what `source` and `generations` lie in and is called once, at close."""
        assert source.shape[1:] == target.shape[1:] and source.dtype == target.dtype
        self._loop = asyncio.get_running_loop()
        self._source: Tensor | None = source
        self._target = target
        self._generations: Generations | None = np.asanyarray(generations)
        self._queue = queue
        self._lost = lost
        self._release = release
        self._block_bytes = target[0].nbytes
        self._stats = ChannelStats()
        self._jobs: JobThread[_Fetch] = JobThread("cuda-ipc-copy", self._fetch)
        self._closing = Closing("cuda-ipc-close", self._close)

    @property
    def stats(self) -> ChannelStats:
        return self._stats

    def post(self, transfer_id: int, moves: Sequence[BlockMove]) -> Receipt:
        """Fetch these blocks. PeerLost when the pair is over, QueueFull when too many fetches wait."""
        if self._lost.is_raised or self._closing.has_begun:
            raise PeerLost("the pair is closed")
        for move in moves:
            assert 0 <= move.target_block < len(self._target)
        receipt = Receipt(self._loop)
        self._jobs.submit(_Fetch(transfer_id, tuple(moves), receipt))
        return receipt

    async def wait_lost(self) -> None:
        await self._lost.wait()

    async def close(self) -> None:
        await self._closing.run()

    def _close(self) -> None:
        self._lost.raise_()  # also stops the running fetch at its next frame
        for fetch in self._jobs.stop():
            fetch.receipt.settle(PeerLost("the pair was closed"))
        self._jobs.join()
        self._source = self._generations = None
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
            moved_bytes=self._stats.moved_bytes + moved * self._block_bytes,
            moved_blocks=self._stats.moved_blocks + moved,
            busy_s=self._stats.busy_s + time.perf_counter() - began,
        )
        fetch.receipt.settle(error)

    def _copy_all(self, fetch: _Fetch) -> None:
        under_way: deque[tuple[Frame, Mark]] = deque()
        try:
            for frame in cut_frames(fetch.moves, self._block_bytes):
                if self._lost.is_raised:
                    raise PeerLost("the source is gone")
                under_way.append((frame, self._begin(frame)))
                if len(under_way) == AHEAD:
                    self._finish(*under_way.popleft())
            while under_way:
                self._finish(*under_way.popleft())
        finally:
            self._queue.mark().wait()  # of a refused transfer too: its blocks are free again after this

    def _begin(self, frame: Frame) -> Mark:
        source, target = self._source, self._target
        assert source is not None
        outside = (frame.sources < 0) | (frame.sources >= len(source))
        if outside.any():
            raise TransferCorrupt(f"source block {frame.sources[outside.argmax()]:,} of a pool of {len(source):,}")
        check_generations(frame, self._generations)
        self._queue.give(lambda: copy_blocks(source, frame.sources, target, frame.targets))
        return self._queue.mark()

    def _finish(self, frame: Frame, copied: Mark) -> None:
        copied.wait()
        check_generations(frame, self._generations)
