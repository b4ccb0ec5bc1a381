"""What bench.gpu_step measures with runs on a CPU, too, in a size that nobody waits for."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.gpu_model import Shape, random_model
from bench.gpu_step import BLOCK_SIZE, Decodes, main, pipelined_seconds, prefill_step
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
def test_without_a_gpu_the_benchmark_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One clear line, and no failure."""
    monkeypatch.setattr(sys, "argv", ["gpu_step"])
    assert main() == 0
    assert "no GPU here" in capsys.readouterr().err


@pytest.mark.usefixtures("kernel_device")
def test_the_kernels_compile_for_a_gpu_that_is_not_here() -> None:
    """For Hopper, with nothing spilled and no more shared memory than it has."""
    command = [sys.executable, "-m", "bench.gpu_kernels", "llama-8b"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["decode", "reduce", "prefill", "write"]
    assert "mma.sync" in lines[0] and "wgmma" in lines[2]  # products on tensor cores
