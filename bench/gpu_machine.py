"""What a GPU machine is: one fact a line, for the notes of whoever measured there.

python -m bench.gpu_machine
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys

import torch

from kv_transfer.transports.nccl_communicator import nccl_version

PACKAGES = ("torch", "triton", "transformers", "grpcio", "protobuf", "numpy", "safetensors")


def release(package: str) -> str:
    """What is installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def smi(query: str) -> str:
    """What nvidia-smi answers, on one line; why not, where it does not."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "; ".join((done.stdout or done.stderr).split("\n")).strip("; ")


def main() -> int:
    """Print them; 1 where there is no GPU."""
    print(f"python {platform.python_version()}, kernel {platform.release()}")
    print(", ".join(f"{name} {release(name)}" for name in PACKAGES))
    print(f"CUDA {torch.version.cuda}, NCCL {nccl_version()}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        facts = torch.cuda.get_device_properties(index)
        reads = [other for other in range(count) if other == index or torch.cuda.can_device_access_peer(index, other)]
        print(
            f"cuda:{index}: {facts.name}, {facts.total_memory / 2**30:.1f} GiB, capability "
            f"{facts.major}.{facts.minor}, {facts.multi_processor_count} processors, UUID {facts.uuid}, reads {reads}"
        )
    print(f"nvidia-smi: {smi('name,driver_version,compute_mode,mig.mode.current,clocks.max.sm,memory.used')}")
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
