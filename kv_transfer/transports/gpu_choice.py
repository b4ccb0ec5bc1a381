"""Which transports may carry KV between two workers, best first, given where their pools lie.

same GPU                                   cuda_ipc, nccl where it can have two ranks on one GPU, staged
same host, the GPUs reach one another      cuda_ipc, nccl, staged
same host otherwise; another host          nccl, staged
one pool in host memory                    staged
both pools in host memory                  not decided here: selection.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MULTI_RANK_NCCL = (2, 30)
"""The first release that takes two ranks on one GPU, with NCCL_MULTI_RANK_GPU_ENABLE=1; older ones refuse."""


@dataclass(frozen=True, slots=True)
class GpuPlace:
    """Where a worker's pool lies."""

    host_id: str
    gpu_uuid: str = ""  # empty: in host memory
    nccl: tuple[int, int] | None = None  # release found at run time; None: this torch has none


@dataclass(frozen=True, slots=True)
class GpuPool:
    """A worker's pool on a GPU, as its transports are given it."""

    blocks: Any  # torch's tensor, dimension 0 the blocks; loosely typed: workers on CPUs load this without torch
    gpu_uuid: str
    nccl: tuple[int, int] | None
    reaches: Callable[[str], bool]  # can its GPU read the memory of the GPU with this UUID?


GPU_TRANSPORTS = ("cuda_ipc", "nccl", "staged")


def choose(kv_transport: str, mine: GpuPlace, theirs: GpuPlace, *, peer_access: bool) -> tuple[str, ...]:
    """The names of the transports that `--kv-transport` and the two places allow, in order of preference.

    `peer_access`: this process sees the peer's GPU and its own can read that one's memory; unused on one GPU.
    Empty: none; the caller raises IncompatiblePeer. ValueError for a name that is not known.
    """
    if kv_transport not in {"auto", *GPU_TRANSPORTS}:
        raise ValueError(f"kv_transport is {kv_transport!r}; GPUs have auto, {', '.join(GPU_TRANSPORTS)}")
    names = GPU_TRANSPORTS if kv_transport == "auto" else (kv_transport,)
    return tuple(name for name in names if obstacle(name, mine, theirs, peer_access=peer_access) is None)


def obstacle(name: str, mine: GpuPlace, theirs: GpuPlace, *, peer_access: bool) -> str | None:
    """Why one of GPU_TRANSPORTS cannot carry KV between two places; None when it can."""
    both = bool(mine.gpu_uuid and theirs.gpu_uuid)
    if name == "staged":
        return None if mine.gpu_uuid or theirs.gpu_uuid else "neither pool lies on a GPU"
    if not both:
        return "one pool lies in host memory"
    return _cannot_map(mine, theirs, peer_access) if name == "cuda_ipc" else nccl_obstacle(mine, theirs)


def _cannot_map(mine: GpuPlace, theirs: GpuPlace, peer_access: bool) -> str | None:
    if mine.host_id != theirs.host_id:
        return "the workers are on two hosts"
    if mine.gpu_uuid != theirs.gpu_uuid and not peer_access:
        return f"{mine.gpu_uuid} cannot read the memory of {theirs.gpu_uuid}, or does not see it"
    return None


def nccl_obstacle(mine: GpuPlace, theirs: GpuPlace) -> str | None:
    """Why two pools on GPUs cannot have a communicator; None when they can."""
    if mine.nccl is None or theirs.nccl is None:
        return "torch has no NCCL on one side"
    oldest = min(mine.nccl, theirs.nccl)
    if mine.gpu_uuid == theirs.gpu_uuid and oldest < MULTI_RANK_NCCL:
        return f"both workers are on one GPU, which NCCL {_dotted(oldest)} refuses (from {_dotted(MULTI_RANK_NCCL)} on)"
    return None


def _dotted(release: tuple[int, int]) -> str:
    return ".".join(map(str, release))


def nccl_environment(*, shares_gpu: bool) -> dict[str, str]:
    """What must stand in a worker's environment before it loads torch; deploy sets it. Not yet tried on a GPU.

    torch's own watchdog would end the process on a timeout or an error, and its monitor would end it when the watchdog
    hangs: here a pair ends instead. Non-blocking communicators can be aborted while they still connect.
    """
    environment = {
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
        "TORCH_NCCL_ENABLE_MONITORING": "0",
        "TORCH_NCCL_BLOCKING_WAIT": "0",
        "TORCH_NCCL_USE_COMM_NONBLOCKING": "1",
        "TORCH_NCCL_NONBLOCKING_TIMEOUT": "10",  # seconds; half an hour otherwise
        "NCCL_NVLS_ENABLE": "0",  # multicast memory that a pair of two never uses
        "NCCL_MAX_CTAS": "8",  # the processors of the GPU belong to the model
    }
    if shares_gpu:
        environment["NCCL_MULTI_RANK_GPU_ENABLE"] = "1"
    return environment
