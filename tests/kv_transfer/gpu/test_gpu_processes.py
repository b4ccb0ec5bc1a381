"""The GPU transports between two processes, one of which is killed or stopped.

On the CPU with stand-ins for CUDA's handles (gpu_peer.FileSharing) and for NCCL (socket_nccl); marked `gpu`, with
nothing replaced: on one GPU for both processes, or on two where there are. NOT YET RUN ON A GPU.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kv_transfer.transports.gpu_choice import MULTI_RANK_NCCL, nccl_environment
from kv_transfer.transports.nccl_communicator import nccl_version
from pdserve.errors import PeerLost

contract = sys.modules["kv_contract_test_transport_processes"]
peer = sys.modules["kv_contract_gpu_peer"]
contract.peer = peer
rig, AT_ONCE_S, NUM_BLOCKS = contract.rig, contract.AT_ONCE_S, contract.NUM_BLOCKS

pytestmark = pytest.mark.e2e
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
NO_NCCL = pytest.mark.skipif(
    torch.cuda.device_count() < 2 and (nccl_version() or (0, 0)) < MULTI_RANK_NCCL,
    reason="two ranks need two GPUs, or a newer NCCL",
)
CUDA_IPC = [pytest.param("cpu", "cuda_ipc"), pytest.param("cuda", "cuda_ipc", marks=[pytest.mark.gpu, NO_GPU])]
PUSHED = [
    pytest.param("cpu", "staged"),
    pytest.param("cuda", "staged", marks=[pytest.mark.gpu, NO_GPU]),
    pytest.param("cpu", "socket_nccl"),
    pytest.param("cuda", "socket_nccl", marks=[pytest.mark.gpu, NO_GPU]),
    pytest.param("cuda", "nccl", marks=[pytest.mark.gpu, NO_GPU, NO_NCCL]),
]


@pytest.fixture(scope="module")
def nurseries() -> Iterator[Any]:
    """By device: a process that has imported everything and forks a peer per socket it is given."""
    running: dict[str, tuple[socket.socket, subprocess.Popen[bytes]]] = {}
    shares_gpu = torch.cuda.device_count() == 1
    environment = {**nccl_environment(shares_gpu=shares_gpu), "OMP_NUM_THREADS": "1"}
    before = dict(os.environ)
    os.environ.update(environment)

    def nursery(device: str) -> socket.socket:
        if device not in running:
            ours, theirs = socket.socketpair()
            command = [sys.executable, "-P", str(Path(__file__).with_name("gpu_peer.py")), str(theirs.fileno()), device]
            running[device] = ours, subprocess.Popen(command, pass_fds=[theirs.fileno()])
            theirs.close()
        peer.device = device
        return running[device][0]

    yield nursery
    for ours, process in running.values():
        ours.close()
        process.wait(30)
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize(("device", "transport"), [*CUDA_IPC, *PUSHED])
def test_a_source_process_serves_and_is_missed_when_killed(nurseries: Any, device: str, transport: str) -> None:
    """Bytes arrive; a second epoch works after a close; kill -9 while idle is noticed at once."""
    contract.test_a_source_process_serves_and_is_missed_when_killed(nurseries(device), transport)


@pytest.mark.parametrize("hold", [True, False], ids=["between frames", "in full flow"])
@pytest.mark.parametrize(("device", "transport"), PUSHED)
def test_a_source_killed_during_a_transfer_is_missed_at_once(
    nurseries: Any, device: str, transport: str, hold: bool
) -> None:
    """The receipt ends with the kill, not with the timeout; memory is quiet, and another peer works."""

    async def main() -> None:
        async with rig(nurseries(device)) as far:
            await far.open(transport, "target", timeout_s=20.0)
            far.line.tell(op="pause_at", block=2, hold=hold)
            moves = far.moves(NUM_BLOCKS)
            receipt = far.channel.post(1, moves)
            far.tell_move("send", moves)
            await far.hear("reached")
            far.signal(signal.SIGKILL)
            began = time.monotonic()
            await far.lost_within(AT_ONCE_S)
            with pytest.raises(PeerLost):
                await asyncio.wait_for(receipt.wait(), 10)
            assert time.monotonic() - began < AT_ONCE_S
            before = bytes(far.memory.data)
            await asyncio.wait_for(far.channel.close(), 10)
            assert bytes(far.memory.data) == before
        await _works(nurseries(device), transport)

    asyncio.run(main())


async def _works(nursery: socket.socket, transport: str) -> None:
    """A new peer process and this one, after whatever befell its device, move blocks."""
    async with rig(nursery) as far:
        await far.open(transport, "target")
        moves = far.moves(8)
        receipt = far.channel.post(1, moves)
        if far.channel.pushed:
            far.tell_move("send", moves)
            assert (await far.hear("done"))["error"] == ""
        await asyncio.wait_for(receipt.wait(), 10)
        for move in moves:
            assert far.memory.block(move.target_block) == far.peer_memory.block(move.source_block)


@pytest.mark.parametrize(("device", "transport"), PUSHED)
def test_a_target_killed_during_a_transfer_is_missed_at_once(nurseries: Any, device: str, transport: str) -> None:
    """The send ends with the kill, not with the timeout, whatever was under way."""

    async def main() -> None:
        async with rig(nurseries(device)) as far:
            await far.open(transport, "source", timeout_s=20.0)
            moves = far.moves(NUM_BLOCKS)
            far.tell_move("post", moves[:40])
            await asyncio.wait_for(far.channel.send(1, moves[:40]), 10)
            sending = asyncio.ensure_future(far.channel.send(1, moves[40:]))  # never posted
            await asyncio.sleep(0)
            far.signal(signal.SIGKILL)
            began = time.monotonic()
            with pytest.raises(PeerLost):
                await asyncio.wait_for(sending, 10)
            await far.lost_within(AT_ONCE_S)
            assert time.monotonic() - began < AT_ONCE_S

    asyncio.run(main())


@pytest.mark.parametrize(("device", "transport"), PUSHED)
def test_a_stopped_source_times_out(nurseries: Any, device: str, transport: str) -> None:
    """SIGSTOP: PeerLost after the timeout, memory keeps; after SIGCONT a new epoch of the two works at once."""

    async def main() -> None:
        async with rig(nurseries(device)) as far:
            await far.open(transport, "target", timeout_s=1.0)
            far.line.tell(op="pause_at", block=2, hold=False)
            moves = far.moves(NUM_BLOCKS)
            receipt = far.channel.post(1, moves)
            far.signal(signal.SIGSTOP)
            far.tell_move("send", moves)
            with pytest.raises(PeerLost):
                await asyncio.wait_for(receipt.wait(), 10)
            before = bytes(far.memory.data)
            far.signal(signal.SIGCONT)
            assert (await far.hear("done"))["error"] == "PeerLost"
            assert bytes(far.memory.data) == before
            await far.open(transport, "target", timeout_s=5.0)
            moves = far.moves(2)
            receipt = far.channel.post(1, moves)
            far.tell_move("send", moves)
            await asyncio.wait_for(receipt.wait(), 10)

    asyncio.run(main())


@pytest.mark.parametrize(("device", "transport"), CUDA_IPC)
def test_a_mapped_source_killed_while_it_is_read(nurseries: Any, device: str, transport: str) -> None:
    """CUDA IPC: whatever becomes of the copies, every receipt is settled and this process's device is sound."""

    async def main() -> None:
        async with rig(nurseries(device)) as far:
            await far.open(transport, "target")
            receipts = [far.channel.post(number, far.moves(NUM_BLOCKS)) for number in range(50)]
            far.signal(signal.SIGKILL)
            outcomes = await asyncio.wait_for(asyncio.gather(*(r.wait() for r in receipts), return_exceptions=True), 20)
            assert all(outcome is None or isinstance(outcome, PeerLost) for outcome in outcomes)
            await far.lost_within(AT_ONCE_S)
            before = bytes(far.memory.data)
            await asyncio.wait_for(far.channel.close(), 10)
            assert bytes(far.memory.data) == before
        await _works(nurseries(device), transport)

    asyncio.run(main())
