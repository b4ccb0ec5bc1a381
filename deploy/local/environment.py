"""The environment of a child process."""

from __future__ import annotations

import os
from pathlib import Path

from kv_transfer.transports.gpu_choice import nccl_environment
from pdserve.config import WorkerStart

_PACKAGES = str(Path(__file__).resolve().parent.parent.parent)  # the folder that holds our packages


def child_environment() -> dict[str, str]:
    """This process's environment, with our packages first on the path.

    Children run with `python -P`, so that a folder named `engine` or `worker` where the user stands is not taken for
    ours; and unbuffered, so that their last words arrive. Threads of OpenMP that wait for work sleep: left to itself
    GNU's spins for milliseconds, on cores that other workers and the router need. GPUs have the numbers that the driver
    shows, the same in every process.
    """
    path = os.environ.get("PYTHONPATH", "")
    return {
        "OMP_WAIT_POLICY": "passive",
        "KMP_BLOCKTIME": "0",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        **os.environ,
        "PYTHONPATH": _PACKAGES + (os.pathsep + path if path else ""),
        "PYTHONUNBUFFERED": "1",
    }


def worker_environment(start: WorkerStart) -> dict[str, str]:
    """A worker's: with what NCCL must find before torch is loaded, where it has a GPU; what the user set wins.

    Every GPU stays visible: a decode worker maps the pool of a prefill worker on another one.
    """
    nccl = nccl_environment(shares_gpu=start.shares_gpu) if start.device != "cpu" else {}
    return nccl | child_environment()
