"""The fetching target: the looks at the generation before and after the copy."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable

import numpy as np
import pytest

from kv_transfer.transports.background import Flag
from kv_transfer.transports.interface import BlockMove
from kv_transfer.transports.pull import PullTarget
from pdserve.errors import TransferCorrupt
from pdserve.kv_memory import KvMemory

Looks = Callable[[], None]


class _WatchedGenerations(np.ndarray[tuple[int], np.dtype[np.uint64]]):
    """Calls `look` before it is read."""

    look: Looks

    def __getitem__(self, blocks: object) -> object:  # type: ignore[override]
        self.look()
        return np.asarray(self)[blocks]  # type: ignore[index]


class _OneBlockPool:
    """A source pool of one block of generation 7 that calls `look` whenever its generation is about to be read."""

    def __init__(self, look: Looks) -> None:
        self.num_blocks, self.block_bytes = 1, 64
        self.data = memoryview(bytes(64))
        self.generations = np.full(1, 7, np.uint64).view(_WatchedGenerations)
        self.generations.look = look


def _given_away_after(looks: int) -> _OneBlockPool:
    """Its block is given away after so many looks at its generation."""
    left = itertools.count(looks, -1)

    def look() -> None:
        if next(left) == 0:
            np.asarray(pool.generations)[0] = 8

    pool = _OneBlockPool(look)
    return pool


@pytest.mark.parametrize("looks", [0, 1])
def test_a_block_given_away_before_or_during_the_copy_is_refused(looks: int) -> None:
    """One look before the copy, one after: whichever differs refuses the block."""

    async def main() -> None:
        memory = KvMemory(1, 64)
        target = PullTarget("test", _given_away_after(looks), memory, Flag(asyncio.get_running_loop()), lambda: None)  # type: ignore[arg-type]
        receipt = target.post(1, [BlockMove(0, 0, 0, 7, 0)])
        with pytest.raises(TransferCorrupt, match="generation 8"):
            await asyncio.wait_for(receipt.wait(), 5)
        assert (target.stats.stale_blocks, target.stats.corrupt_blocks) == (1, 0)
        await target.close()

    asyncio.run(main())


def test_a_block_that_stays_is_copied() -> None:
    """The same pool, given away only after the last look."""

    async def main() -> None:
        memory = KvMemory(1, 64)
        memory.data[:] = np.full(64, 9, np.uint8).tobytes()
        target = PullTarget("test", _given_away_after(2), memory, Flag(asyncio.get_running_loop()), lambda: None)  # type: ignore[arg-type]
        await asyncio.wait_for(target.post(1, [BlockMove(0, 0, 0, 7, 0)]).wait(), 5)
        assert memory.data == bytes(64)
        await target.close()

    asyncio.run(main())


def test_a_cancelled_waiter_is_held_until_the_copy_has_ended() -> None:
    """The copy is under way when its waiter is cancelled: the blocks are given back only after it."""

    async def main() -> None:
        looked_at, let_go = threading.Event(), threading.Event()

        def look() -> None:
            looked_at.set()
            assert let_go.wait(10)

        pool = _OneBlockPool(look)
        target = PullTarget("test", pool, KvMemory(1, 64), Flag(asyncio.get_running_loop()), lambda: None)  # type: ignore[arg-type]
        receipt = target.post(1, [BlockMove(0, 0, 0, 7, 0)])
        waiting = asyncio.ensure_future(receipt.wait())
        assert await asyncio.to_thread(looked_at.wait, 10)
        waiting.cancel()
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done and not receipt.is_settled
        let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(waiting, 10)
        assert receipt.is_settled
        await target.close()

    asyncio.run(main())
