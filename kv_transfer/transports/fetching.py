"""The target's end where it fetches by itself: posts in, one thread that copies, receipts out. What copies is given."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from kv_transfer.transports.background import Closing, Flag, JobThread
from kv_transfer.transports.checks import StaleBlock
from kv_transfer.transports.interface import BlockMove, ChannelStats, Receipt
from pdserve.errors import PeerLost, ServingError, TransferCorrupt


class Copies(Protocol):
    """Moves the blocks of one post. Called on one thread; `let_go` after the last call, which may have raised."""

    num_blocks: int  # of the target's pool
    block_bytes: int

    def copy(self, transfer_id: int, moves: Sequence[BlockMove]) -> None:
        """Copy and verify; whatever happens, nothing writes the target blocks any more when it returns or raises."""
        ...

    def let_go(self) -> None:
        """Drop what lies in the source's memory."""
        ...


@dataclass(frozen=True, slots=True)
class _Fetch:
    transfer_id: int
    moves: tuple[BlockMove, ...]
    receipt: Receipt = field(compare=False)


class FetchingTarget:
    """A TargetChannel. A refused post fails its receipt only."""

    pushed = False

    def __init__(self, name: str, copies: Copies, lost: Flag, release: Callable[[], None]) -> None:
        """`lost` is raised when the source goes; `release` lets go of its memory and is called once, at close."""
        self._loop = asyncio.get_running_loop()
        self._copies = copies
        self._lost = lost
        self._release = release
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
            assert 0 <= move.target_block < self._copies.num_blocks
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
        self._copies.let_go()
        self._release()

    def _fetch(self, fetch: _Fetch) -> None:
        began = time.perf_counter()
        try:
            self._copies.copy(fetch.transfer_id, fetch.moves)
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
            moved_bytes=self._stats.moved_bytes + moved * self._copies.block_bytes,
            moved_blocks=self._stats.moved_blocks + moved,
            busy_s=self._stats.busy_s + time.perf_counter() - began,
        )
        fetch.receipt.settle(error)
