"""What bench.gpu_step measures with runs on a CPU, too, in a size that nobody waits for."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.gpu_model import Shape, random_model
from bench.gpu_step import BLOCK_SIZE, Decodes, pipelined_seconds, prefill_step
from engine.kv_pool import KvPool
from pdserve.sampling import SampledToken

ROOT = Path(__file__).resolve().parents[3]
TINY = Shape(layers=1, hidden=32, intermediate=32, heads=2, kv_heads=1, head_dim=16, vocab=300)


def test_the_random_model_steps(kernel_device: torch.device) -> None:
    """Made without a file, counted right, decoded with tokens that only the device knows, and prefilled."""
    model = random_model(TINY, "float32", kernel_device, 256)
    layer = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 32
    assert model.matrix_elements == layer
    assert model.weight_bytes == 4 * (layer + 3 * 32 + 300 * 32)
    pool = KvPool(TINY.kv_layout("float32", BLOCK_SIZE), 20, device=kernel_device)
    runner = importlib.import_module("engine.gpu.runner").GpuRunner(model.module, pool, 256, 2, 64)
    assert runner.capture()
    decodes = Decodes(2, 30, 8)
    assert pipelined_seconds(runner, decodes, 3) > 0
    assert decodes.steps[0].start == 34
    assert all(isinstance(result, SampledToken) for result in runner.execute(prefill_step(20)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_says_so() -> None:
    """One clear line, and no failure."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu_step"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "no GPU here" in done.stderr
