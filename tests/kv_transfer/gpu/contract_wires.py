"""GPU transports for the contract suite: which, on which device, with what in place of CUDA's and NCCL's own parts."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kv_transfer.transports.cuda_ipc import CudaIpcTransport
from kv_transfer.transports.gloo import GlooTransport
from kv_transfer.transports.gpu_copies import host_pool
from kv_transfer.transports.nccl import NcclTransport
from kv_transfer.transports.staged import StagedTransport
from pdserve.kv_memory import KvMemory

base = sys.modules["kv_contract_conftest"]
SocketNccl = sys.modules["kv_contract_socket_nccl"].SocketNccl


class DeviceBytes:
    """A tensor that the contract reads and writes as it does a pool's host memory."""

    def __init__(self, tensor: Tensor) -> None:
        self._flat = tensor.view(torch.uint8).flatten()

    def __len__(self) -> int:
        return len(self._flat)

    def __getitem__(self, part: slice) -> bytes:
        torch.cuda.synchronize()
        return self._flat[part].cpu().numpy().tobytes()

    def __setitem__(self, part: slice, value: bytes) -> None:
        self._flat[part] = torch.frombuffer(bytearray(value), dtype=torch.uint8).to(self._flat.device)
        torch.cuda.synchronize()

    def __bytes__(self) -> bytes:
        return self[:]

    def __reversed__(self) -> Iterator[int]:
        return reversed(self[:])

    def tobytes(self) -> bytes:
        return self[:]


class DeviceMemory(KvMemory):
    """Generations in host memory, blocks on a GPU."""

    def __init__(self, num_blocks: int, block_bytes: int) -> None:
        super().__init__(num_blocks, block_bytes)
        self.pool = torch.zeros(num_blocks, block_bytes, dtype=torch.uint8, device="cuda")
        self.data: Any = DeviceBytes(self.pool)

    def block(self, block_id: int) -> Any:
        return self.data[block_id * self.block_bytes : (block_id + 1) * self.block_bytes]


def pool_of(memory: KvMemory) -> Tensor:
    return memory.pool if isinstance(memory, DeviceMemory) else host_pool(memory)


class OneProcessSharing:
    """In place of CUDA's handles: pools of this process by number."""

    def __init__(self) -> None:
        self._pools: dict[bytes, Tensor] = {}
        self._numbers = itertools.count()

    def export(self, pool: Tensor) -> bytes:
        card = b"%d" % next(self._numbers)
        self._pools[card] = pool
        return card

    def open(self, packed: bytes) -> Tensor:
        return self._pools[packed]


@dataclass(frozen=True)
class GpuWire(base.Wire):
    """A transport, its stand-ins, and where the pools lie."""

    device: str
    pushed: bool

    def memories(self, num_blocks: int, block_bytes: int) -> tuple[KvMemory, KvMemory]:
        if self.device == "cpu":
            return super().memories(num_blocks, block_bytes)
        return device_memory(num_blocks, block_bytes, 1), device_memory(num_blocks, block_bytes, 2)


def device_memory(num_blocks: int, block_bytes: int, seed: int) -> DeviceMemory:
    memory = DeviceMemory(num_blocks, block_bytes)
    memory.data[:] = np.random.default_rng(seed).bytes(num_blocks * block_bytes)
    for block in range(num_blocks):
        memory.generations[block] = 1000 + block
    return memory


def cuda_ipc(faults: Any, timeout_s: float) -> CudaIpcTransport:
    return CudaIpcTransport(pool_of, sharing=SHARING, timeout_s=timeout_s)


def nccl_digests(faults: Any, timeout_s: float) -> NcclTransport:
    return NcclTransport(pool_of, connect=SocketNccl, digests=True, timeout_s=timeout_s, faults=faults)


def staged(faults: Any, timeout_s: float) -> StagedTransport:
    return StagedTransport(pool_of, inner=GlooTransport(timeout_s=timeout_s, faults=faults))


SHARING = OneProcessSharing()
WIRES = [
    GpuWire(f"{make.__name__}_on_{device}", make, digest, device, pushed)
    for device in ("cpu", "cuda")
    for make, digest, pushed in [
        (cuda_ipc, False, False),
        (nccl_digests, True, True),
        (staged, True, True),
    ]
]
