"""The contract that every transport keeps, both ends in one process."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from kv_transfer.frame import Descriptor
from kv_transfer.transports import BlockMove, Faults, TargetChannel
from kv_transfer.transports.framing import FRAME_BYTES, MESSAGE_BYTES, give_tags
from pdserve.errors import HandoffError, IncompatiblePeer, InvariantViolation, PeerLost, ServingError, TransferCorrupt

T = TypeVar("T")
Wire = Any  # of conftest
Pair = Any


async def soon(awaitable: Awaitable[T], timeout_s: float = 10.0) -> T:
    """No wait of a test is without a deadline."""
    return await asyncio.wait_for(awaitable, timeout_s)


@pytest.mark.parametrize("count", [1, 17, 64])
def test_bytes_arrive_whatever_the_blocks_and_their_order(wire: Wire, count: int) -> None:
    """Random sources, random targets; blocks that were not named keep what they held."""

    async def main() -> None:
        async with wire.pair() as pair:
            before = bytes(pair.target_memory.data)
            moves = pair.random_moves(count)
            await soon(pair.move(1, moves))
            assert pair.has_arrived(moves)
            touched = {move.target_block for move in moves}
            size = pair.info.block_bytes
            for block in set(range(64)) - touched:
                assert pair.target_memory.block(block) == before[block * size : (block + 1) * size]
            assert pair.target.stats.moved_blocks == count
            assert pair.target.stats.moved_bytes == count * size

    asyncio.run(main())


def test_neighbouring_blocks_arrive(wire: Wire) -> None:
    """Runs, where copies and messages coalesce, and the places where a run breaks on one side only."""

    async def main() -> None:
        sources, targets = [0, 1, 2, 3, 10, 11, 12, 63], [5, 6, 8, 9, 10, 11, 12, 62]
        async with wire.pair() as pair:
            await soon(pair.move(1, pair.moves(sources, targets)))
            tags = give_tags(sources, targets, pair.info.block_bytes, itertools.count(pair.next_tag, 2))
            moves = [replace(m, tag=tag) for m, tag in zip(pair.moves(sources, targets), tags, strict=True)]
            pair.source_memory.data[:] = bytes(reversed(pair.source_memory.data))
            await soon(pair.move(2, moves))
            assert len(set(tags)) == 4 and pair.has_arrived(moves)

    asyncio.run(main())


@pytest.mark.parametrize("block_bytes", [8, 40, 65_536, 2 << 20])
def test_any_block_size(wire: Wire, block_bytes: int) -> None:
    """From eight bytes to two mebibytes: several windows, several packets."""

    async def main() -> None:
        async with wire.pair(num_blocks=6, block_bytes=block_bytes) as pair:
            moves = pair.random_moves(6)
            await soon(pair.move(1, moves))
            assert pair.has_arrived(moves)

    asyncio.run(main())


def test_transfers_interleave(wire: Wire) -> None:
    """Three transfers, cut in pieces that take turns, all under way at once."""

    async def main() -> None:
        async with wire.pair() as pair:
            moves = pair.random_moves(60)
            pieces = [(i % 3, moves[5 * i : 5 * i + 5]) for i in range(12)]
            receipts = [pair.target.post(transfer, piece) for transfer, piece in pieces]
            if pair.target.pushed:
                await soon(asyncio.gather(*(pair.source.send(transfer, piece) for transfer, piece in pieces)))
            await soon(asyncio.gather(*(receipt.wait() for receipt in receipts)))
            assert pair.has_arrived(moves)

    asyncio.run(main())


def test_many_pairs_at_once(wire: Wire) -> None:
    """Eight pairs move side by side without meeting."""

    async def one(barrier: asyncio.Barrier) -> None:
        async with wire.pair(num_blocks=8) as pair:
            await barrier.wait()
            moves = pair.random_moves(8)
            await pair.move(1, moves)
            assert pair.has_arrived(moves)

    async def main() -> None:
        barrier = asyncio.Barrier(8)
        await soon(asyncio.gather(*(one(barrier) for _ in range(8))))

    asyncio.run(main())


def test_a_stale_generation_is_refused(wire: Wire) -> None:
    """A source block that was given away since it was announced never passes for the one announced."""

    async def main() -> None:
        async with wire.pair(timeout_s=1.0) as pair:
            moves = pair.random_moves(4)
            pair.source_memory.generations[moves[2].source_block] += 1
            receipt = pair.target.post(1, moves)
            if pair.target.pushed:
                with pytest.raises(TransferCorrupt):
                    await soon(pair.source.send(1, moves))
                assert pair.source.stats.stale_blocks == 1
            with pytest.raises(HandoffError):
                await soon(receipt.wait())
            if not pair.target.pushed:
                assert pair.target.stats.stale_blocks == 1
                good = pair.random_moves(4)  # the pair itself is sound
                await soon(pair.move(2, good))
                assert pair.has_arrived(good)

    asyncio.run(main())


def test_a_generation_that_moves_during_the_copy_is_refused(digest_wire: Wire) -> None:
    """The block is given away between its digest and its departure, and overwritten."""

    async def main() -> None:
        def overwrite(payload: memoryview) -> None:
            payload[:] = bytes(len(payload))

        async with digest_wire.pair(timeout_s=1.0, faults=Faults(after_digest=overwrite)) as pair:
            with pytest.raises(TransferCorrupt):
                await soon(move_and_expect_receipt(pair, pair.random_moves(1)))

    asyncio.run(main())


async def move_and_expect_receipt(pair: Pair, moves: list[BlockMove]) -> None:
    """Like Pair.move, but what counts is what the target says."""
    receipt = pair.target.post(1, moves)
    if pair.target.pushed:
        (said,) = await asyncio.gather(pair.source.send(1, moves), return_exceptions=True)
        assert isinstance(said, HandoffError)
    await receipt.wait()


def test_a_flipped_byte_is_refused(digest_wire: Wire) -> None:
    """One bit of the last byte, changed after the digest was taken."""

    async def main() -> None:
        def flip(payload: memoryview) -> None:
            payload[-1] ^= 1

        async with digest_wire.pair(faults=Faults(after_digest=flip)) as pair:
            with pytest.raises(TransferCorrupt, match="digest"):
                await soon(move_and_expect_receipt(pair, pair.random_moves(1)))
            assert pair.target.stats.corrupt_blocks == 1
            assert pair.target.stats.moved_blocks == 0

    asyncio.run(main())


def test_a_refused_block_makes_memory_quiet_before_the_receipt_says_so(pushed_wire: Wire) -> None:
    """The frame behind the refused one has receives posted: a sender let loose later writes into none of them."""

    async def main() -> None:
        let_go = threading.Event()
        messages = iter(range(100))

        def flip_first_hold_second(payload: memoryview) -> None:
            number = next(messages)
            if number == 0:
                payload[0] ^= 1
            elif number == FRAME_BYTES // MESSAGE_BYTES:
                assert let_go.wait(10)

        faults = Faults(after_digest=flip_first_hold_second)
        async with pushed_wire.pair(num_blocks=4, block_bytes=FRAME_BYTES, faults=faults) as pair:
            moves = pair.random_moves(4)
            receipt = pair.target.post(1, moves)
            sending = asyncio.ensure_future(pair.source.send(1, moves))
            with pytest.raises(TransferCorrupt, match="digest"):
                await soon(receipt.wait())
            pair.target_memory.data[:] = b"\x5a" * len(pair.target_memory.data)
            let_go.set()
            with pytest.raises(PeerLost):
                await soon(sending)
            assert pair.target_memory.data.tobytes().strip(b"\x5a") == b""

    asyncio.run(main())


@pytest.mark.parametrize(
    ("field", "value"),
    [("nonce", bytes(16)), ("epoch", 99), ("transfer_id", 99), ("count", 2), ("index", 99), ("tag", 98),
     ("source_block", 63), ("source_generation", 1), ("length", 8), ("blocks", 8)],
)  # fmt: skip
def test_a_descriptor_of_something_else_is_refused(digest_wire: Wire, field: str, value: object) -> None:
    """The right bytes under a wrong name do not count."""

    async def main() -> None:
        def alter(descriptor: Descriptor) -> Descriptor:
            return replace(descriptor, **{field: value})  # type: ignore[arg-type]

        async with digest_wire.pair(faults=Faults(alter=alter)) as pair:
            with pytest.raises(TransferCorrupt, match=field.replace("_", " ")):
                await soon(move_and_expect_receipt(pair, pair.moves([3], [4])))

    asyncio.run(main())


@pytest.mark.parametrize(("field", "value"), [("nonce", bytes(16)), ("epoch", 99), ("block_bytes", 128)])
def test_two_ends_of_different_pairs_do_not_open(wire: Wire, field: str, value: object) -> None:
    """A mix-up of peers ends before the first byte, on both sides, and in time."""

    async def main() -> None:
        outcomes = await soon(wire.open_mismatched(**{field: value}))
        target_says = outcomes[1]
        assert isinstance(target_says, IncompatiblePeer | PeerLost)

    asyncio.run(main())


def test_a_peer_that_never_comes_is_given_up(wire: Wire) -> None:
    """A lone target, and a lone source where it waits, raise PeerLost after the timeout."""

    async def main() -> None:
        began = time.monotonic()
        outcomes = await soon(wire.open_alone(timeout_s=0.3))
        assert isinstance(outcomes[1], PeerLost)
        assert isinstance(outcomes[0], PeerLost) or wire.name == "in_process"
        assert time.monotonic() - began < 5.0

    asyncio.run(main())


def test_both_ends_notice_when_either_closes(wire: Wire) -> None:
    """wait_lost returns on the closing side and on the other; later use is refused."""

    async def main() -> None:
        for closer in ("source", "target"):
            async with wire.pair() as pair:
                waits = asyncio.gather(pair.source.wait_lost(), pair.target.wait_lost())
                await soon(getattr(pair, closer).close())
                await soon(waits, 1.0)
                with pytest.raises(PeerLost):
                    pair.target.post(1, pair.random_moves(1))
                if pair.target.pushed:
                    with pytest.raises(PeerLost):
                        await pair.source.send(1, pair.random_moves(1))

    asyncio.run(main())


def test_close_is_safe_to_repeat_and_to_share(wire: Wire) -> None:
    """Many closers at once, and again later."""

    async def main() -> None:
        async with wire.pair() as pair:
            await soon(asyncio.gather(*(end.close() for end in (pair.source, pair.target) for _ in range(3))))
            await soon(pair.close())

    asyncio.run(main())


def test_a_new_epoch_opens_at_once(wire: Wire) -> None:
    """The same two workers, right after the earlier pair ended badly."""

    async def main() -> None:
        async with wire.pair() as first:
            await soon(first.target.close())
            for epoch in range(2, 5):
                began = time.monotonic()
                info = replace(first.info, epoch=epoch, nonce=os.urandom(16))
                async with wire.pair(info=info, memories=(first.source_memory, first.target_memory)) as pair:
                    assert time.monotonic() - began < 1.0
                    moves = pair.random_moves(3)
                    await soon(pair.move(1, moves))
                    assert pair.has_arrived(moves)

    asyncio.run(main())


def test_close_settles_what_is_under_way_and_then_memory_is_quiet(wire: Wire) -> None:
    """Receipts end with the close, not with the timeout; nothing is written once it returned."""

    async def main() -> None:
        async with wire.pair(num_blocks=16, block_bytes=1 << 20) as pair:
            moves = pair.random_moves(16)
            receipt = pair.target.post(1, moves)
            sending = asyncio.ensure_future(send_if_pushed(pair, 1, moves))
            began = time.monotonic()
            await soon(pair.target.close())
            assert time.monotonic() - began < 2.0
            assert receipt.is_settled
            pair.target_memory.data[:] = b"\x5a" * len(pair.target_memory.data)
            outcomes = await soon(asyncio.gather(receipt.wait(), sending, return_exceptions=True))
            assert all(outcome is None or isinstance(outcome, PeerLost) for outcome in outcomes)  # None: it was faster
            await soon(pair.source.close())
            assert pair.target_memory.data.tobytes().strip(b"\x5a") == b""

    asyncio.run(main())


async def send_if_pushed(pair: Pair, transfer_id: int, moves: list[BlockMove]) -> None:
    if pair.target.pushed:
        await pair.source.send(transfer_id, moves)


def test_a_cancelled_waiter_is_held_until_memory_is_quiet(pushed_wire: Wire) -> None:
    """Cancelling the wait does not give the blocks back early: it ends when the receive has ended."""

    async def main() -> None:
        async with pushed_wire.pair(timeout_s=0.5) as pair:
            receipt = pair.target.post(1, pair.random_moves(8))  # never sent: it times out
            waiting = asyncio.ensure_future(receipt.wait())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await soon(waiting)
            assert receipt.is_settled

    asyncio.run(main())


def test_a_transfer_that_is_never_sent_times_out(pushed_wire: Wire) -> None:
    """A pushed receive ends by its timeout, the pair with it, and a late sender writes nothing."""

    async def main() -> None:
        async with pushed_wire.pair(timeout_s=0.3) as pair:
            moves = pair.random_moves(4)
            receipt = pair.target.post(1, moves)
            began = time.monotonic()
            with pytest.raises(PeerLost):
                await soon(receipt.wait())
            assert 0.2 < time.monotonic() - began < 2.0
            pair.target_memory.data[:] = b"\xa5" * len(pair.target_memory.data)
            with pytest.raises(PeerLost):  # the late sender
                await soon(pair.source.send(1, moves))
            await soon(pair.target.wait_lost(), 1.0)
            assert pair.target_memory.data.tobytes().strip(b"\xa5") == b""

    asyncio.run(main())


def test_tags_are_never_used_again(pushed_wire: Wire) -> None:
    """A pushed transport refuses a tag twice: the second payload could be the first one's."""

    async def main() -> None:
        async with pushed_wire.pair() as pair:
            moves = pair.random_moves(2)
            await soon(pair.move(1, moves))
            for bad in (moves, [replace(moves[0], tag=7)], [replace(moves[0], tag=2**31 - 2)]):
                with pytest.raises(InvariantViolation, match="tag"):
                    pair.target.post(2, bad)

    asyncio.run(main())


def test_a_tag_is_shared_by_neighbours_only(pushed_wire: Wire) -> None:
    """One message is one piece of memory on both ends: the target refuses to post others, the source to send them."""

    async def main() -> None:
        async with pushed_wire.pair(timeout_s=1.0) as pair:
            for targets in ([4, 6], [5, 4]):
                moves = pair.moves([1, 2], targets)
                with pytest.raises(InvariantViolation, match="neighbours"):
                    pair.target.post(1, [replace(move, tag=moves[0].tag) for move in moves])
            moves = pair.moves([1, 3], [4, 5])
            with pytest.raises(InvariantViolation, match="neighbours"):
                await soon(pair.source.send(1, [replace(move, tag=moves[0].tag) for move in moves]))
            await soon(pair.target.wait_lost())

    asyncio.run(main())


def test_a_source_block_outside_the_pool_is_refused(fetching_wire: Wire) -> None:
    """What the peer names is checked before it is touched."""

    async def main() -> None:
        async with fetching_wire.pair() as pair:
            receipt = pair.target.post(1, [BlockMove(0, 0, 64, 1, 0)])
            with pytest.raises(TransferCorrupt, match="64"):
                await soon(receipt.wait())

    asyncio.run(main())


def test_nothing_is_left_after_fifty_pairs(wire: Wire) -> None:
    """No thread and no file descriptor, whether pairs ended well or not."""

    async def cycle(number: int, memories: Any) -> TargetChannel:
        async with wire.pair(memories=memories) as pair:
            moves = pair.random_moves(2)
            if number % 3:
                await pair.move(1, moves)
            else:
                pair.target.post(1, moves)
            return pair.target  # a closed channel that someone still holds

    def resources() -> tuple[int, int]:
        return threading.active_count() + len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    async def main() -> None:
        memories = wire.memories(8, 4096)
        await cycle(0, memories)
        await cycle(1, memories)
        before = resources()
        held = [await soon(cycle(number, memories)) for number in range(50)]
        deadline = time.monotonic() + 5.0
        while (after := resources()) > before and time.monotonic() < deadline:
            time.sleep(0.01)  # noqa: ASYNC251 - a joined thread leaves /proc a moment later
        assert after[0] <= before[0] and after[1] <= before[1], (before, after)
        assert len(held) == 50

    asyncio.run(main())


def test_an_opening_that_is_cancelled_leaves_nothing(wire: Wire) -> None:
    """The caller is let go at once; an end that still comes to be is closed again, and the other end notices."""

    async def main() -> None:
        before = threading.active_count()
        info = wire.new_pair(64)
        mine, peers = wire.rendezvous()
        memories = wire.memories(8, 64)
        opening = asyncio.ensure_future(wire.transport(timeout_s=2.0).open_target(info, mine, memories[1]))
        await asyncio.sleep(0)
        opening.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert time.monotonic() - began < 1.0
        try:
            source = await soon(wire.transport(timeout_s=2.0).open_source(info, peers, memories[0]))
        except PeerLost:
            pass
        else:
            if wire.name != "in_process":  # its source meets nobody: it only leaves word
                await soon(source.wait_lost(), 5.0)
            await source.close()
        deadline = time.monotonic() + 5.0
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.01)  # noqa: ASYNC251 - nothing tells when the last thread has ended
        assert threading.active_count() <= before

    asyncio.run(main())


def test_errors_are_the_house_errors(wire: Wire) -> None:
    """A transport raises nothing that the handoff would not know how to answer."""

    async def main() -> None:
        for outcome in await soon(wire.open_alone(timeout_s=0.2)):
            assert outcome is None or isinstance(outcome, ServingError)

    asyncio.run(main())
