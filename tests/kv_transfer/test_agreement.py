"""Which transport two workers take, and what is said when there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kv_transfer.agreement import MAX_PEERS, Agreement, UnusableTransports, agree
from kv_transfer.selection import make_transports
from kv_transfer.transports.gpu_choice import GpuPlace, GpuPool
from pdserve.errors import IncompatiblePeer
from pdserve.kv_memory import KvMemory
from pdserve.v1 import worker_pb2 as pb

OLD, NEW = (2, 27), (2, 30)
HERE = GpuPlace("host", "GPU-a", OLD)


def gpu_pool(nccl: tuple[int, int] | None = OLD) -> GpuPool:
    return GpuPool(torch.zeros(4, 16), "GPU-a", nccl, lambda uuid: False)


def hello(*transports: str, place: GpuPlace = HERE) -> pb.PairHello:
    major, minor = place.nccl or (0, 0)
    return pb.PairHello(
        source_worker_id="prefill-0", transports=transports, host_id=place.host_id, gpu_uuid=place.gpu_uuid,
        nccl_major=major, nccl_minor=minor,
    )  # fmt: skip


def names(kv_transport: str, gpu: GpuPool | None = None) -> list[str]:
    return list(make_transports(kv_transport, "127.0.0.1", gpu))


def test_a_worker_offers_what_its_pool_allows() -> None:
    """On a GPU other names than on a CPU; without NCCL in torch none of it; a name of the other kind is refused."""
    assert names("auto") == ["shm", "gloo"] and names("shm") == ["shm"]
    assert names("auto", gpu_pool()) == ["cuda_ipc", "nccl", "staged"]
    assert names("auto", gpu_pool(None)) == ["cuda_ipc", "staged"]
    assert names("staged", gpu_pool()) == ["staged"]
    for wrong, gpu in (("staged", None), ("nccl", None), ("shm", gpu_pool()), ("gloo", gpu_pool())):
        with pytest.raises(ValueError, match=f"kv_transport is '{wrong}'"):
            names(wrong, gpu)


def test_gpu_transports_are_given_the_pool_and_not_the_host_memory() -> None:
    """Imported when a pair first opens; each copies from the tensor that the worker computes in."""
    gpu = gpu_pool()
    memory = KvMemory(4, 64)
    for transport in make_transports("auto", "127.0.0.1", gpu).values():
        loaded: Any = transport.load()  # type: ignore[attr-defined]
        assert loaded.name == transport.name and loaded.pushed is transport.pushed
        assert loaded._pool_of(memory) is gpu.blocks


ROOT = Path(__file__).resolve().parents[2]
ALL = ("cuda_ipc", "nccl", "staged")
NEIGHBOUR, FAR = GpuPlace("host", "GPU-b", OLD), GpuPlace("elsewhere", "GPU-c", OLD)


@pytest.mark.parametrize(
    ("theirs", "peer_access", "expected"),
    [
        (HERE, False, Agreement("cuda_ipc", True)),
        (NEIGHBOUR, True, Agreement("cuda_ipc", True)),
        (NEIGHBOUR, False, Agreement("nccl", True)),
        (FAR, False, Agreement("nccl", True)),
        (GpuPlace("elsewhere", "GPU-c"), False, Agreement("staged", False)),
        (GpuPlace("host"), False, Agreement("staged", False)),
    ],
)
def test_auto_takes_the_best(theirs: GpuPlace, peer_access: bool, expected: Agreement) -> None:
    """One card; cards that reach each other or do not; other hosts; no NCCL; a pool in host memory."""
    ours = make_transports("auto", "127.0.0.1", gpu_pool())
    assert agree(ours, HERE, hello(*ALL, place=theirs), set(), peer_access=peer_access) == expected


def test_what_failed_to_open_is_left_out_until_nothing_is_left() -> None:
    """Then the last is tried again."""
    ours = make_transports("auto", "127.0.0.1", gpu_pool())
    found = [
        agree(ours, HERE, hello(*ALL, place=NEIGHBOUR), refused, peer_access=True)
        for refused in ({"cuda_ipc"}, {"cuda_ipc", "nccl"}, set(ALL))
    ]
    assert found == [Agreement("nccl", True), Agreement("staged", False), Agreement("staged", False)]


@pytest.mark.parametrize(
    ("forced", "theirs", "said"),
    [
        ("nccl", HERE, r"nccl: both workers are on one GPU, which NCCL 2\.27 refuses \(from 2\.30 on\)"),
        ("nccl", GpuPlace("host", "GPU-b"), "nccl: torch has no NCCL on one side"),
        ("cuda_ipc", FAR, "cuda_ipc: the workers are on two hosts"),
        ("cuda_ipc", NEIGHBOUR, "cuda_ipc: GPU-a cannot read the memory of GPU-b, or does not see it"),
        ("cuda_ipc", GpuPlace("host"), "cuda_ipc: one pool lies in host memory"),
    ],
)
def test_a_forced_transport_that_cannot_work_is_refused_with_the_reason(
    forced: str, theirs: GpuPlace, said: str
) -> None:
    """No other is taken in its place."""
    ours = make_transports(forced, "127.0.0.1", gpu_pool())
    with pytest.raises(IncompatiblePeer, match=f"no transport in common with prefill-0: .*{said}"):
        agree(ours, HERE, hello(forced, place=theirs), set(), peer_access=False)


def test_two_that_force_unlike_names_are_told_both() -> None:
    """What either has stands in the error."""
    ours = make_transports("nccl", "127.0.0.1", gpu_pool(NEW))
    with pytest.raises(IncompatiblePeer, match=r"it has cuda_ipc, this worker nccl$"):
        agree(ours, HERE, hello("cuda_ipc"), set(), peer_access=False)


def test_choosing_a_transport_loads_no_torch() -> None:
    """A mock worker with shared memory, and the launcher, start without it."""
    code = "import sys, kv_transfer.selection, kv_transfer.agreement; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_what_cannot_be_opened_is_remembered_of_the_last_peers_only() -> None:
    """Every restart of a worker has another boot id: what is kept must not grow with them."""
    unusable = UnusableTransports()
    boots = [bytes([n // 256, n % 256]) for n in range(3 * MAX_PEERS)]
    unusable.add(boots[0], "shm")
    for boot in boots[1:]:
        unusable.add(boot, "shm")
        unusable.add(boots[0], "gloo")  # it goes on failing
    assert len(unusable) == MAX_PEERS
    assert unusable.of(boots[0]) == {"shm", "gloo"} and unusable.of(boots[-1]) == {"shm"}
    assert unusable.of(boots[1]) == unusable.of(b"unknown") == frozenset()
