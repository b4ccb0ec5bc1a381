"""Which transports may carry KV between two workers, best first, given where their pools lie.

same GPU                                   cuda_ipc, nccl where it can have two ranks on one GPU, staged
same host, the GPUs reach one another      cuda_ipc, nccl, staged
same host otherwise; another host          nccl, staged
one pool in host memory                    staged
both pools in host memory                  not decided here: selection.py
"""

from __future__ import annotations

from dataclasses import dataclass

MULTI_RANK_NCCL = (2, 30)
"""The first release that takes two ranks on one GPU, with NCCL_MULTI_RANK_GPU_ENABLE=1; older ones refuse."""


@dataclass(frozen=True, slots=True)
class GpuPlace:
    """Where a worker's pool lies."""

    host_id: str
    gpu_uuid: str = ""  # empty: in host memory
    nccl: tuple[int, int] | None = None  # release found at run time; None: this torch has none


def choose(kv_transport: str, mine: GpuPlace, theirs: GpuPlace, *, peer_access: bool) -> tuple[str, ...]:
    """The names of the transports that `--kv-transport` and the two places allow, in order of preference.

    `peer_access`: this process sees the peer's GPU and its own can read that one's memory; unused on one GPU.
    Empty: none; the caller raises IncompatiblePeer. ValueError for a name that is not known.
    """
    if kv_transport not in {"auto", "cuda_ipc", "nccl", "staged"}:
        raise ValueError(f"kv_transport is {kv_transport!r}; GPUs have auto, cuda_ipc, nccl, staged")
    possible = {
        "cuda_ipc": _can_map(mine, theirs, peer_access),
        "nccl": _can_nccl(mine, theirs),
        "staged": bool(mine.gpu_uuid or theirs.gpu_uuid),
    }
    return tuple(name for name, can in possible.items() if can and kv_transport in {"auto", name})


def _can_map(mine: GpuPlace, theirs: GpuPlace, peer_access: bool) -> bool:
    if not (mine.gpu_uuid and theirs.gpu_uuid) or mine.host_id != theirs.host_id:
        return False
    return mine.gpu_uuid == theirs.gpu_uuid or peer_access


def _can_nccl(mine: GpuPlace, theirs: GpuPlace) -> bool:
    if not (mine.gpu_uuid and theirs.gpu_uuid) or mine.nccl is None or theirs.nccl is None:
        return False
    return mine.gpu_uuid != theirs.gpu_uuid or min(mine.nccl, theirs.nccl) >= MULTI_RANK_NCCL


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
