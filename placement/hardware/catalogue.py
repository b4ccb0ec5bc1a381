"""GPU types by name: peak rates and sizes of their data sheets, typical prices, and how much of a peak kernels reach.

Rates are dense (no sparsity), bytes per second are in one direction. Prices are on-demand list prices per GPU and hour
of the Splitwise paper (Patel et al., ISCA 2024, table 2) where it has them, else of large clouds in 2025: they are
there to be overridden.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

_TERA, _GIGA, _GIB = 1e12, 1e9, 2.0**30


@dataclass(frozen=True, slots=True)
class GpuType:
    """One kind of accelerator."""

    name: str
    flops: float  # bfloat16 with float32 accumulation, per second
    memory_bytes: float
    memory_bytes_per_s: float
    peer_bytes_per_s: float  # to a GPU of the same node, one way: NVLink, or PCIe where there is none
    network_bytes_per_s: float  # to a GPU of another node, one way: its share of the node's network cards
    power_w: float  # at full load
    cost_per_hour: float  # dollars
    gpus_per_node: int = 8
    # What well-written kernels reach of the peaks (measured on large shapes; override with a profile).
    flops_efficiency: float = 0.7
    memory_efficiency: float = 0.85
    link_efficiency: float = 0.75
    step_overhead_s: float = 1.0e-3  # launching, sampling and scheduling around one step
    layer_overhead_s: float = 6.0e-6  # between the kernels of one layer under a CUDA graph
    collective_latency_s: float = 8.0e-6  # of one all-reduce, before its first byte

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "name" and not value >= 0.0:
                raise ValueError(f"GPU {self.name}: {field.name} is {value}, must be at least 0")
        for name in ("flops", "memory_bytes", "memory_bytes_per_s", "peer_bytes_per_s", "network_bytes_per_s"):
            if getattr(self, name) == 0.0:
                raise ValueError(f"GPU {self.name}: {name} is 0, must be above 0")


def _gpu(
    name: str, tflops: float, gib: float, gb_per_s: float, peer_gb: float, network_gb: float, watts: float, cost: float
) -> GpuType:
    return GpuType(name, tflops * _TERA, gib * _GIB, gb_per_s * _GIGA, peer_gb * _GIGA, network_gb * _GIGA, watts, cost)


CATALOGUE: dict[str, GpuType] = {
    gpu.name: gpu
    for gpu in (
        _gpu("a100-40g", 312, 40, 1555, 300, 25, 400, 1.80),
        _gpu("a100", 312, 80, 2039, 300, 25, 400, 2.21),
        _gpu("h100", 989, 80, 3350, 450, 50, 700, 4.76),
        _gpu("h100-pcie", 756, 80, 2000, 64, 25, 350, 3.60),
        _gpu("h200", 989, 141, 4800, 450, 50, 700, 5.50),
        _gpu("b200", 2250, 180, 7700, 900, 50, 1000, 8.00),
        _gpu("l40s", 362, 48, 864, 32, 12.5, 350, 1.60),
        _gpu("l4", 121, 24, 300, 32, 12.5, 72, 0.70),
        _gpu("a10g", 70, 24, 600, 32, 12.5, 150, 1.00),
        _gpu("mi300x", 1307, 192, 5300, 448, 50, 750, 4.50),
    )
}


def gpu_type(name: str) -> GpuType:
    """A type of the catalogue, with `+cap` at 70 % of its power (Splitwise, section 5: decode hardly slows down).

    Errors: ValueError that lists the names.
    """
    base, plus, option = name.lower().partition("+")
    gpu = CATALOGUE.get(base)
    if gpu is None or (plus and option != "cap"):
        raise ValueError(f"GPU type {name!r} is not known; there are {', '.join(CATALOGUE)}, each also with +cap")
    if not plus:
        return gpu
    # Under the cap the clock gives, not the memory: prompts slow down with it (Splitwise, figure 8), decoding does not.
    return replace(gpu, name=name.lower(), power_w=0.7 * gpu.power_w, flops=0.8 * gpu.flops)
