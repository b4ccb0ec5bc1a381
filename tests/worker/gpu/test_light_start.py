"""A worker with a GPU starts on a machine that has torch, Triton and grpcio, and little else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[3]
NOT_NEEDED = ("llguidance", "starlette", "uvicorn", "ray")


def test_a_gpu_worker_loads_no_library_that_it_does_not_use(kernel_device: torch.device) -> None:
    """Nothing of the front doors, of constraints or of Ray, on any way from the program to its engine."""
    code = f"import sys, decode_worker.policy, worker.process, worker.build_gpu, bench.gpu_split\n" \
           f"print([name for name in {NOT_NEEDED!r} if name in sys.modules])"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
