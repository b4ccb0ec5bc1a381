"""The peer of test_gpu_processes.py: transport_peer.py with pools on a device and the GPU transports.

    gpu_peer.py FD DEVICE     forks a peer per socket that arrives at FD; CUDA begins in the forks

Both processes have this module: the test's own GPU is the first, the peer's the last.
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kv_transfer.transports.cuda_ipc import CudaIpcTransport
from kv_transfer.transports.gloo import GlooTransport
from kv_transfer.transports.nccl import NcclTransport
from kv_transfer.transports.staged import StagedTransport
from pdserve.kv_memory import KvMemory

is_peer = __name__ == "__main__"


def _contract() -> Any:
    """What conftest.py loads; pytest has done so in the test's process."""
    if is_peer:
        sys.modules["kv_contract_gpu_peer"] = sys.modules["__main__"]
        path = Path(__file__).with_name("conftest.py")
        spec = importlib.util.spec_from_file_location("kv_contract_gpu_conftest", path)
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return sys.modules["kv_contract_contract_wires"]


wires = _contract()
base = sys.modules["kv_contract_transport_peer"]
plain_pool, Line, pair_info = base.pool, base.Line, base.pair_info
device = "cpu"


class FileSharing:
    """In place of CUDA's handles between processes: the memory file behind a pool in host memory."""

    def __init__(self) -> None:
        self.memories: list[KvMemory] = []

    def export(self, pool: Tensor) -> bytes:
        (memory,) = (m for m in self.memories if np.frombuffer(m.data, np.uint8).ctypes.data == pool.data_ptr())
        return f"{os.getpid()} {memory.fd} {memory.num_blocks} {memory.block_bytes}".encode()

    def open(self, packed: bytes) -> Tensor:
        pid, fd, num_blocks, block_bytes = map(int, packed.split())
        opened = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR)
        mapped = mmap.mmap(opened, num_blocks * block_bytes)
        os.close(opened)
        return torch.frombuffer(mapped, dtype=torch.uint8).view(num_blocks, block_bytes)


SHARING = FileSharing()


def pool(num_blocks: int, block_bytes: int, seed: int) -> KvMemory:
    """transport_peer's pool, on the device."""
    memory: KvMemory = plain_pool(num_blocks, block_bytes, seed)
    if device == "cpu":
        SHARING.memories.append(memory)
        return memory
    torch.cuda.set_device(torch.cuda.device_count() - 1 if is_peer else 0)
    on_device: KvMemory = wires.DeviceMemory(num_blocks, block_bytes)
    on_device.data[:] = bytes(memory.data)
    on_device.generations[:] = memory.generations
    return on_device


def make(name: str, timeout_s: float, faults: Any = None) -> Any:
    faults = faults or base.Faults()
    if name == "cuda_ipc":
        sharing = SHARING if device == "cpu" else None
        return CudaIpcTransport(wires.pool_of, sharing=sharing, timeout_s=timeout_s)
    if name == "nccl":
        return NcclTransport(wires.pool_of, timeout_s=timeout_s, faults=faults)
    if name == "staged":
        return StagedTransport(wires.pool_of, inner=GlooTransport(timeout_s=timeout_s, faults=faults))
    assert name == "socket_nccl"
    return NcclTransport(wires.pool_of, connect=wires.SocketNccl, timeout_s=timeout_s, faults=faults)


base.make, base.pool = make, pool

if is_peer:
    device = sys.argv[2]
    base.serve_forks(socket.socket(fileno=int(sys.argv[1])))
