"""The fetching target: how copies coalesce, and the look at the generation after the copy."""

from __future__ import annotations

import asyncio
import random
import threading

import numpy as np
import pytest

from kv_transfer.transports.background import Flag
from kv_transfer.transports.interface import BlockMove
from kv_transfer.transports.pull import PullTarget, coalesce
from pdserve.errors import TransferCorrupt
from pdserve.kv_memory import KvMemory


def moves_of(pairs: list[tuple[int, int]]) -> list[BlockMove]:
    return [BlockMove(index, 0, source, 0, target) for index, (source, target) in enumerate(pairs)]


def test_runs_are_consecutive_on_both_sides_and_bounded() -> None:
    """A run ends where either side jumps, or at the bound."""
    moves = moves_of([(0, 4), (1, 5), (2, 7), (4, 8), (5, 9), (6, 10), (7, 11)])
    assert [len(run.moves) for run in coalesce(moves, 3)] == [2, 1, 3, 1]
    assert list(coalesce([], 3)) == []


def test_runs_are_the_moves_in_order() -> None:
    """Over random moves: nothing lost, nothing doubled, every run consecutive."""
    rng = random.Random(5)
    for _ in range(200):
        moves = moves_of([(rng.randrange(4), rng.randrange(4)) for _ in range(rng.randrange(12))])
        runs = list(coalesce(moves, rng.randint(1, 4)))
        assert [move for run in runs for move in run.moves] == moves
        for run in runs:
            for offset, move in enumerate(run.moves):
                assert move.source_block == run.source_block + offset
                assert move.target_block == run.target_block + offset


class _TurningGenerations:
    """Reads as `before` until every block was looked at `looks` times, then as given away."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    def __getitem__(self, block: int) -> int:
        self.left -= 1
        return 7 if self.left >= 0 else 8


class _TurningPool:
    """A source pool whose only block is given away after some looks at its generation."""

    def __init__(self, looks: int) -> None:
        self.num_blocks, self.block_bytes = 1, 64
        self.data = memoryview(bytes(64))
        self.generations = _TurningGenerations(looks)


@pytest.mark.parametrize("looks", [0, 1, 2])
def test_a_block_given_away_before_or_during_the_copy_is_refused(looks: int) -> None:
    """Two looks before the copy, one after: whichever differs refuses the block."""

    async def main() -> None:
        memory = KvMemory(1, 64)
        target = PullTarget("test", _TurningPool(looks), memory, Flag(asyncio.get_running_loop()), lambda: None)  # type: ignore[arg-type]
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
        target = PullTarget("test", _TurningPool(3), memory, Flag(asyncio.get_running_loop()), lambda: None)  # type: ignore[arg-type]
        await asyncio.wait_for(target.post(1, [BlockMove(0, 0, 0, 7, 0)]).wait(), 5)
        assert memory.data == bytes(64)
        await target.close()

    asyncio.run(main())


class _SlowGenerations:
    """Holds every look until it is let go."""

    def __init__(self) -> None:
        self.looked_at = threading.Event()
        self.let_go = threading.Event()

    def __getitem__(self, block: int) -> int:
        self.looked_at.set()
        assert self.let_go.wait(10)
        return 7


def test_a_cancelled_waiter_is_held_until_the_copy_has_ended() -> None:
    """The copy is under way when its waiter is cancelled: the blocks are given back only after it."""

    async def main() -> None:
        pool = _TurningPool(0)
        pool.generations = slow = _SlowGenerations()  # type: ignore[assignment]
        target = PullTarget("test", pool, KvMemory(1, 64), Flag(asyncio.get_running_loop()), lambda: None)  # type: ignore[arg-type]
        receipt = target.post(1, [BlockMove(0, 0, 0, 7, 0)])
        waiting = asyncio.ensure_future(receipt.wait())
        assert await asyncio.to_thread(slow.looked_at.wait, 10)
        waiting.cancel()
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done and not receipt.is_settled
        slow.let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(waiting, 10)
        assert receipt.is_settled
        await target.close()

    asyncio.run(main())
