"""The machine one stands at as a `GpuType`: a CPU socket measured with numpy, in about two seconds."""

from __future__ import annotations

import os
import time

import numpy as np

from placement.hardware.catalogue import GpuType

_GEMM = 768
_BYTES = 1 << 28
_REPEATS = 3


def this_machine(memory_bytes: float | None = None) -> GpuType:
    """Float32 GEMM rate and read-and-write memory rate of all cores that numpy uses; the network is memory itself.

    `memory_bytes`: what a worker may have; half of the physical memory without it.
    """
    if memory_bytes is None:
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    rate = _memory_rate()
    return GpuType(
        "this-machine", _gemm_rate(), memory_bytes, rate, rate, rate, power_w=0.0, cost_per_hour=0.0, gpus_per_node=1,
        flops_efficiency=0.85, memory_efficiency=0.85, link_efficiency=0.4, step_overhead_s=3e-4, layer_overhead_s=2e-5,
    )  # fmt: skip


def _gemm_rate() -> float:
    left = np.ones((_GEMM, _GEMM), np.float32)
    right = np.ones((_GEMM, _GEMM), np.float32)
    return 2.0 * _GEMM**3 / _best(lambda: left @ right)


def _memory_rate() -> float:
    """Bytes read per second."""
    data = np.ones(_BYTES // 8)
    return float(_BYTES / _best(lambda: data.sum()))


def _best(work: object) -> float:
    assert callable(work)
    best = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
