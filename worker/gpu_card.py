"""One GPU as a worker asks it: how much memory, how much of it is taken, its name among all GPUs.

NOT YET RUN ON A GPU.
"""

from __future__ import annotations

import gc
from typing import Protocol

import torch

from kv_transfer.transports.cuda_ipc_handle import can_reach, gpu_uuid
from kv_transfer.transports.nccl_communicator import nccl_version
from pdserve.exit import ExitCode, StartError


class Card(Protocol):
    """What CudaCard is; tests have one without a GPU."""

    device: torch.device
    total_bytes: int
    gpu_uuid: str
    nccl: tuple[int, int] | None

    def free_bytes(self) -> int:
        """Of the whole card, whoever took the rest."""
        ...

    def most_taken_bytes(self) -> int:
        """The most that this process's tensors and graphs have held since it began."""
        ...

    def give_back(self) -> None:
        """Return what is held for nobody."""
        ...

    def reaches(self, uuid: str) -> bool:
        """Can it read the memory of the GPU with this UUID? May block for a moment."""
        ...


class CudaCard:
    """Through torch. Making one makes the card this thread's."""

    def __init__(self, device: torch.device) -> None:
        """StartError when this process does not see it."""
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise StartError(
                f"device is {device}; torch sees {count} GPUs here (driver, CUDA_VISIBLE_DEVICES)", ExitCode.ENVIRONMENT
            )
        torch.cuda.set_device(device)
        self.device = device
        self.total_bytes = int(torch.cuda.get_device_properties(device).total_memory)
        self.gpu_uuid = gpu_uuid(device)
        self.nccl = nccl_version()

    def free_bytes(self) -> int:
        return int(torch.cuda.mem_get_info(self.device)[0])

    def most_taken_bytes(self) -> int:
        return int(torch.cuda.max_memory_reserved(self.device))

    def give_back(self) -> None:
        gc.collect()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()

    def reaches(self, uuid: str) -> bool:
        return can_reach(self.device, uuid)
