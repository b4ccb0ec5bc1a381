"""The same contract with the peer in a process of its own, which dies, stops and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from kv_transfer.transports import BlockMove
from pdserve.errors import PeerLost
from pdserve.kv_memory import KvMemory

pytestmark = pytest.mark.e2e
PEER = Path(__file__).with_name("transport_peer.py")
BLOCK_BYTES = 256 << 10
NUM_BLOCKS = 64
AT_ONCE_S = 2.0
"""On a busy machine; far below the timeouts that it is told apart from."""


def _load_peer() -> Any:
    spec = importlib.util.spec_from_file_location("transport_peer", PEER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["transport_peer"] = module
    spec.loader.exec_module(module)
    return module


peer = _load_peer()


class Rig:
    """This process's end of a pair and the process that holds the other."""

    def __init__(self, pid: int, line: Any) -> None:
        self.pid = pid
        self.line = line
        self.epoch = 0
        self.next_tag = 0
        self.channel: Any = None
        self.memory: KvMemory
        self.peer_memory: KvMemory  # as the peer filled it

    async def hear(self, op: str) -> dict[str, Any]:
        message = await asyncio.to_thread(self.line.hear)
        assert message["op"] == op, message
        return message

    async def open(self, transport: str, own_role: str, timeout_s: float = 5.0) -> None:
        self.epoch += 1
        self.memory = peer.pool(NUM_BLOCKS, BLOCK_BYTES, 1)
        self.peer_memory = peer.pool(NUM_BLOCKS, BLOCK_BYTES, 2)
        self.line.tell(op="fill", num_blocks=NUM_BLOCKS, block_bytes=BLOCK_BYTES, seed=2)
        await self.hear("filled")
        self.line.tell(
            op="open", transport=transport, role="target" if own_role == "source" else "source", timeout_s=timeout_s,
            block_bytes=BLOCK_BYTES, epoch=self.epoch,
        )  # fmt: skip
        made = peer.make(transport, timeout_s)
        opener = made.open_source if own_role == "source" else made.open_target
        self.channel = await asyncio.wait_for(
            opener(peer.pair_info(BLOCK_BYTES, self.epoch), self.line, self.memory), 10
        )
        await self.hear("opened")

    def moves(self, count: int) -> list[BlockMove]:
        first = self.next_tag
        self.next_tag += 2 * count
        return [BlockMove(i, first + 2 * i, i, i + 1, NUM_BLOCKS - 1 - i) for i in range(count)]

    def tell_move(self, op: str, moves: list[BlockMove]) -> None:
        plain = [(m.index, m.tag, m.source_block, m.source_generation, m.target_block) for m in moves]
        self.line.tell(op=op, moves=plain)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    async def lost_within(self, seconds: float) -> None:
        began = time.monotonic()
        await asyncio.wait_for(self.channel.wait_lost(), 10)
        assert time.monotonic() - began < seconds


@pytest.fixture(scope="module")
def nursery() -> Iterator[socket.socket]:
    """A process that has imported everything and forks a peer per socket it is given."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-P", str(PEER), str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    theirs.close()
    with ours:
        yield ours
    process.wait(30)


@contextlib.asynccontextmanager
async def rig(nursery: socket.socket) -> AsyncIterator[Rig]:
    """One peer process; whatever state a test left it in, it ends here."""
    ours, theirs = socket.socketpair()
    socket.send_fds(nursery, [b"+"], [theirs.fileno()])
    theirs.close()
    (pid,) = struct.unpack("<i", await asyncio.to_thread(nursery.recv, 4))
    line = peer.Line(ours)
    made = Rig(pid, line)
    try:
        await made.hear("ready")
        yield made
    finally:
        if made.channel is not None:
            await asyncio.wait_for(made.channel.close(), 10)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        line.close()


@pytest.mark.parametrize("transport", ["gloo", "shared_memory", "shared_memory_digests"])
def test_a_source_process_serves_and_is_missed_when_killed(nursery: socket.socket, transport: str) -> None:
    """Bytes arrive; a second epoch works after a close; kill -9 while idle is noticed at once."""

    async def main() -> None:
        async with rig(nursery) as far:
            for _ in range(2):
                if far.channel is not None:
                    await far.channel.close()
                await far.open(transport, "target")
                moves = far.moves(8)
                receipt = far.channel.post(1, moves)
                if far.channel.pushed:
                    far.tell_move("send", moves)
                    assert (await far.hear("done"))["error"] == ""
                await asyncio.wait_for(receipt.wait(), 10)
                for move in moves:
                    assert far.memory.block(move.target_block) == far.peer_memory.block(move.source_block)
            far.signal(signal.SIGKILL)
            await far.lost_within(AT_ONCE_S)
            with pytest.raises(PeerLost):
                far.channel.post(1, far.moves(1))

    asyncio.run(main())


@pytest.mark.parametrize("hold", [True, False], ids=["between blocks", "in full flow"])
def test_a_source_killed_during_a_transfer_is_missed_at_once(nursery: socket.socket, hold: bool) -> None:
    """gloo: the receipt ends with the kill, not with the timeout; memory is quiet afterwards."""

    async def main() -> None:
        async with rig(nursery) as far:
            await far.open("gloo", "target", timeout_s=20.0)
            far.line.tell(op="pause_at", block=4, hold=hold)
            moves = far.moves(NUM_BLOCKS)
            receipt = far.channel.post(1, moves)
            far.tell_move("send", moves)
            await far.hear("reached")
            far.signal(signal.SIGKILL)
            await far.lost_within(AT_ONCE_S)
            began = time.monotonic()
            with pytest.raises(PeerLost):
                await asyncio.wait_for(receipt.wait(), 10)
            assert time.monotonic() - began < AT_ONCE_S
            far.memory.data[:] = b"\x5a" * len(far.memory.data)
            began = time.monotonic()
            await far.channel.close()
            assert time.monotonic() - began < AT_ONCE_S
            assert far.memory.data.tobytes().strip(b"\x5a") == b""

    asyncio.run(main())


def test_a_target_killed_during_a_transfer_is_missed_at_once(nursery: socket.socket) -> None:
    """gloo: the send ends with the kill, not with the timeout, whatever was under way."""

    async def main() -> None:
        async with rig(nursery) as far:
            await far.open("gloo", "source", timeout_s=20.0)
            moves = far.moves(NUM_BLOCKS)
            far.tell_move("post", moves[:40])
            await asyncio.wait_for(far.channel.send(1, moves[:40]), 10)
            far.tell_move("post", moves[40:50])
            sending = asyncio.gather(
                far.channel.send(1, moves[40:50]), far.channel.send(1, moves[50:]), return_exceptions=True
            )  # the last blocks have no receive
            await asyncio.sleep(0)
            far.signal(signal.SIGKILL)
            began = time.monotonic()
            first, second = await asyncio.wait_for(sending, 10)
            assert (first is None or isinstance(first, PeerLost)) and isinstance(second, PeerLost)
            assert time.monotonic() - began < AT_ONCE_S
            await far.lost_within(AT_ONCE_S)

    asyncio.run(main())


def test_a_stopped_source_times_out_and_writes_nothing_when_it_comes_back(nursery: socket.socket) -> None:
    """gloo, SIGSTOP in full flow: PeerLost after the timeout; SIGCONT lets the late sender loose; memory keeps."""

    async def main() -> None:
        async with rig(nursery) as far:
            await far.open("gloo", "target", timeout_s=1.0)
            far.line.tell(op="pause_at", block=4, hold=False)
            moves = far.moves(NUM_BLOCKS)
            receipt = far.channel.post(1, moves)
            far.tell_move("send", moves)
            await far.hear("reached")
            far.signal(signal.SIGSTOP)
            began = time.monotonic()
            with pytest.raises(PeerLost):
                await asyncio.wait_for(receipt.wait(), 10)
            assert 0.5 < time.monotonic() - began < 1.0 + AT_ONCE_S
            far.memory.data[:] = b"\xa5" * len(far.memory.data)
            far.signal(signal.SIGCONT)
            assert (await far.hear("done"))["error"] == "PeerLost"
            assert far.memory.data.tobytes().strip(b"\xa5") == b""
            await far.open("gloo", "target")  # both processes are sound: a new epoch works at once
            moves = far.moves(2)
            receipt = far.channel.post(1, moves)
            far.tell_move("send", moves)
            await asyncio.wait_for(receipt.wait(), 10)

    asyncio.run(main())


def test_a_stopped_source_does_not_stop_a_reader_of_its_memory(nursery: socket.socket) -> None:
    """Shared memory: without digests the copy needs nobody; with them the answer times out."""

    async def main() -> None:
        async with rig(nursery) as far:
            await far.open("shared_memory", "target", timeout_s=0.5)
            far.signal(signal.SIGSTOP)
            moves = far.moves(NUM_BLOCKS)
            await asyncio.wait_for(far.channel.post(1, moves).wait(), 10)
            assert far.memory.block(0) == far.peer_memory.block(NUM_BLOCKS - 1)
            far.signal(signal.SIGCONT)
            await far.channel.close()
            await far.open("shared_memory_digests", "target", timeout_s=0.5)
            far.signal(signal.SIGSTOP)
            with pytest.raises(PeerLost, match=r"0\.5 s"):
                await asyncio.wait_for(far.channel.post(1, moves).wait(), 10)
            await far.lost_within(AT_ONCE_S)

    asyncio.run(main())
