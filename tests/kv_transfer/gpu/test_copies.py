"""The device layer's tensor work, and what the transports do while the device lags behind the host."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from kv_transfer.transports.cuda_ipc import CudaIpcTransport
from kv_transfer.transports.framing import FRAME_BYTES
from kv_transfer.transports.gpu_copies import as_words, block_sums, copy_blocks, pack, unpack
from kv_transfer.transports.gpu_staging import REGIONS, Chunks
from kv_transfer.transports.interface import BlockMove
from kv_transfer.transports.nccl import NcclTransport
from kv_transfer.transports.staged import StagedTransport
from pdserve.errors import PeerLost, TransferCorrupt

base = sys.modules["kv_contract_conftest"]
wires = sys.modules["kv_contract_contract_wires"]
RECEIPT: Any = object()


@pytest.mark.parametrize("block_bytes", [3, 8, 40, 4096])
@pytest.mark.parametrize("count", [1, 4, 30])
def test_blocks_are_copied_where_they_belong(block_bytes: int, count: int) -> None:
    """Few runs and many, words and odd bytes, straight and by way of a buffer; other blocks keep what they held."""
    rng, order = np.random.default_rng(3), random.Random(count)
    source, target = (
        torch.from_numpy(rng.integers(0, 256, (64, block_bytes), np.uint8).copy()) for _ in range(2)
    )  # fmt: skip
    sources, targets = (np.array(order.sample(range(64), count)) for _ in range(2))
    expected = target.clone()
    for a, b in zip(sources, targets, strict=True):
        expected[b] = source[a]
    words = as_words(target.clone(), block_bytes)
    copy_blocks(as_words(source, block_bytes), sources, words, targets)
    assert torch.equal(words.view(torch.uint8), expected)
    buffer = torch.empty(count, words.shape[1], dtype=words.dtype)
    words = as_words(target, block_bytes)
    pack(as_words(source, block_bytes), sources, buffer)
    unpack(buffer, words, targets)
    assert torch.equal(target, expected)


def test_a_pool_of_another_shape_is_refused() -> None:
    """Blocks of another size, and views with gaps."""
    for pool in (torch.zeros(4, 24), torch.zeros(4, 32)[:, :16]):
        with pytest.raises(ValueError, match="expected 64"):
            as_words(pool, 64)
    assert as_words(torch.zeros(4, 2, 8, dtype=torch.bfloat16), 32).shape == (4, 4)


def test_sums_show_flipped_and_misplaced_blocks() -> None:
    """Any bit of any block, and two blocks that changed places; sums wrap around."""
    packed = torch.full((3, 4), 2**62, dtype=torch.int64)
    packed[1] += 1
    before = block_sums(packed).copy()
    assert before.tolist() == [0, 4, 0]
    packed[2, 3] ^= -(2**63)
    assert (block_sums(packed) != before).tolist() == [False, False, True]
    assert (block_sums(packed[[1, 0, 2]])[:2] != before[:2]).all()


class LaggingQueue:
    """A device far behind: nothing that was given has any effect before it is let go."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.let_go = threading.Event()
        self.waited_for = threading.Event()
        self._work: list[Callable[[], None]] = []

    def give(self, work: Callable[[], None]) -> None:
        self._work.append(work)

    def mark(self) -> LaggingQueue:
        return self

    def wait(self) -> None:
        self.waited_for.set()
        assert self.let_go.wait(10)
        while self._work:
            self._work.pop(0)()


class Lagging(wires.GpuWire):
    """Its queues lag until let go."""

    queues: list[LaggingQueue]

    def transport(self, faults: Any = None, timeout_s: float = 5.0) -> Any:
        def make_queue(device: torch.device) -> LaggingQueue:
            self.queues.append(LaggingQueue(device))
            return self.queues[-1]

        if self.name == "cuda_ipc":
            return CudaIpcTransport(wires.pool_of, sharing=wires.SHARING, make_queue=make_queue)
        if self.name == "staged":
            return StagedTransport(wires.pool_of, make_queue=make_queue)
        return NcclTransport(wires.pool_of, connect=wires.SocketNccl, make_queue=make_queue)


def lagging(name: str) -> Any:
    wire = Lagging(name, lambda faults, timeout_s: None, False, "cpu", name != "cuda_ipc")
    object.__setattr__(wire, "queues", [])
    return wire


async def reached(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 10)


def test_a_block_given_away_while_the_device_copies_is_refused() -> None:
    """CUDA IPC: both looks at the generation enclose the copy on the device, not the call that started it."""

    async def main() -> None:
        wire = lagging("cuda_ipc")
        async with wire.pair() as pair:
            (queue,) = wire.queues
            moves = pair.random_moves(4)
            receipt = pair.target.post(1, moves)
            await reached(queue.waited_for)
            assert not receipt.is_settled
            pair.source_memory.generations[moves[3].source_block] += 1
            queue.let_go.set()
            with pytest.raises(TransferCorrupt, match="generation"):
                await asyncio.wait_for(receipt.wait(), 10)
            assert pair.target.stats.stale_blocks == 1 and pair.target.stats.moved_blocks == 0

    asyncio.run(main())


@pytest.mark.parametrize("end", ["stale", "closed"])
def test_a_refused_transfer_keeps_its_blocks_until_the_device_is_done(end: str) -> None:
    """CUDA IPC: the second frame is refused, or the pair closed, while the first is being copied: both are held."""

    async def main() -> None:
        wire = lagging("cuda_ipc")
        async with wire.pair(num_blocks=4, block_bytes=FRAME_BYTES) as pair:
            (queue,) = wire.queues
            moves = pair.random_moves(4)
            if end == "stale":
                pair.source_memory.generations[moves[1].source_block] += 1
            receipt = pair.target.post(1, moves)
            await reached(queue.waited_for)
            closing = asyncio.ensure_future(pair.target.close()) if end == "closed" else None
            await asyncio.sleep(0.05)  # nothing tells that something does not happen
            assert not receipt.is_settled and (closing is None or not closing.done())
            queue.let_go.set()
            with pytest.raises(TransferCorrupt if end == "stale" else PeerLost):
                await asyncio.wait_for(receipt.wait(), 10)
            before = bytes(pair.target_memory.data)
            await pair.close()
            assert bytes(pair.target_memory.data) == before

    asyncio.run(main())


def test_a_block_given_away_while_the_source_packs_is_never_sent() -> None:
    """NCCL: the generations are looked at when the packed copy is over, and before the descriptor leaves."""

    async def main() -> None:
        wire = lagging("nccl")
        async with wire.pair() as pair:
            for queue in wire.queues:
                queue.let_go.set()
            source_queue = pair.source._payload._queue
            source_queue.let_go.clear()
            before = bytes(pair.target_memory.data)
            moves = pair.random_moves(4)
            receipt = pair.target.post(1, moves)
            sending = asyncio.ensure_future(pair.source.send(1, moves))
            await reached(source_queue.waited_for)
            pair.source_memory.generations[moves[0].source_block] += 1
            source_queue.let_go.set()
            with pytest.raises(TransferCorrupt, match="generation"):
                await asyncio.wait_for(sending, 10)
            with pytest.raises(PeerLost):
                await asyncio.wait_for(receipt.wait(), 10)
            assert pair.source.stats.stale_blocks == 1
            assert bytes(pair.target_memory.data) == before

    asyncio.run(main())


class StallingNccl(wires.SocketNccl):  # type: ignore[name-defined,misc]
    """Connects, and then receives nothing any more."""

    messages = 0

    def receive(self, payload: torch.Tensor) -> Any:
        type(self).messages += 1
        if self.messages == 1:
            return super().receive(payload)
        return self._give(self._stall)

    def _stall(self) -> None:
        raise OSError("stalls until aborted")


def test_a_communicator_that_stalls_ends_its_pair_and_leaves_the_pool_alone() -> None:
    """The descriptor came, the payload never does: PeerLost after the timeout on both ends, blocks as they were."""

    async def main() -> None:
        StallingNccl.messages = 0
        transport = NcclTransport(wires.pool_of, connect=StallingNccl, timeout_s=0.5)
        wire = wires.GpuWire("stalling", lambda faults, timeout_s: transport, False, "cpu", True)
        async with wire.pair() as pair:
            before = bytes(pair.target_memory.data)
            moves = pair.random_moves(4)
            receipt = pair.target.post(1, moves)
            sending = asyncio.ensure_future(pair.source.send(1, moves))
            for outcome in await asyncio.wait_for(asyncio.gather(receipt.wait(), sending, return_exceptions=True), 10):
                assert isinstance(outcome, PeerLost)
            await asyncio.wait_for(pair.target.wait_lost(), 1)
            assert bytes(pair.target_memory.data) == before

    asyncio.run(main())


def test_a_staged_transfer_waits_for_its_last_copy_and_close_does_too() -> None:
    """Staged: gloo is done, the device is not: neither the receipt nor the close comes before it."""

    async def main() -> None:
        wire = lagging("staged")
        async with wire.pair() as pair:
            moves = pair.random_moves(4)
            target_queue = pair.target._staging._queue
            for queue in wire.queues:
                if queue is not target_queue:
                    queue.let_go.set()
            receipt = pair.target.post(1, moves)
            await asyncio.wait_for(pair.source.send(1, moves), 10)
            await reached(target_queue.waited_for)
            closing = asyncio.ensure_future(pair.target.close())
            await asyncio.sleep(0.05)  # nothing tells that something does not happen
            assert not receipt.is_settled and not closing.done()
            target_queue.let_go.set()
            await asyncio.wait_for(closing, 10)
            assert receipt.is_settled
            before = bytes(pair.target_memory.data)
            await asyncio.wait_for(asyncio.gather(receipt.wait(), return_exceptions=True), 10)
            assert bytes(pair.target_memory.data) == before

    asyncio.run(main())


def test_a_region_is_not_filled_again_before_it_was_emptied() -> None:
    """Staged: the target's device lags behind; the wire stops when all regions are full, and every block is right."""

    async def main() -> None:
        wire = lagging("staged")
        async with wire.pair(num_blocks=6, block_bytes=FRAME_BYTES) as pair:
            target_queue = pair.target._staging._queue
            for queue in wire.queues:
                if queue is not target_queue:
                    queue.let_go.set()
            moves = pair.random_moves(6)
            moving = asyncio.ensure_future(pair.move(1, moves))
            await reached(target_queue.waited_for)
            while pair.target.stats.moved_blocks < REGIONS:  # noqa: ASYNC110 - nobody tells; bounded below
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)  # nothing tells that something does not happen
            assert pair.target.stats.moved_blocks == REGIONS
            target_queue.let_go.set()
            await moving
            assert pair.has_arrived(moves)

    asyncio.run(asyncio.wait_for(main(), 20))


def test_staged_chunks_agree_on_both_ends() -> None:
    """Many posts of all sizes: true blocks differ, slots, tags, order and identities do not; regions take turns."""
    here, there = Chunks(FRAME_BYTES // 4), Chunks(FRAME_BYTES // 4)
    order, regions = random.Random(5), []
    for post in range(40):
        count = order.randrange(1, 12)
        moves = [BlockMove(i, 2 * i, order.randrange(99), order.randrange(1 << 60), -1) for i in range(count)]
        seen = [replace(move, tag=8, target_block=i) for i, move in enumerate(moves)]
        mine, theirs = list(here.cut(post, moves, RECEIPT)), list(there.cut(post, seen, RECEIPT))
        assert [chunk.staged for chunk in mine] == [chunk.staged for chunk in theirs]
        assert [chunk.receipt for chunk in mine] == [None] * (len(mine) - 1) + [RECEIPT]
        assert [s for chunk in mine for s in chunk.frame.sources] == [move.source_block for move in moves]
        assert [t for chunk in theirs for t in chunk.frame.targets] == list(range(count))
        regions += [chunk.slots.start // 4 for chunk in mine]
        assert all(len({slot // 4 for slot in chunk.slots}) == 1 for chunk in mine)
    assert regions == [i % 4 for i in range(len(regions))]
