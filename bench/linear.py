"""Products with packed matrices, beside what the memory gives and what torch and oneDNN reach.

    python -m bench.linear [--dtype float32] [--models small tiny] [--rows 1 8 32 128 512] [--threads 1]

Few rows must read the matrix: their rate is a share of the read bandwidth of the same run. Many rows must multiply:
theirs stands beside those of torch's linear and of oneDNN's packed one. Every pass goes over matrices of 400 MB in all,
so that caches help little; the least of several passes, CPU time of one thread (wall time where there are more).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.arguments import positive
from bench.limits import read_rate
from engine.native import load_library
from engine.native.packed_linear import Packer

WORKING_SET_BYTES = 400_000_000
FEW_ROWS = 32  # up to here memory is the limit


@dataclass(frozen=True, slots=True)
class Shape:
    """One matrix of a model: q-k-v, output, gate and up, down, head."""

    depth: int
    width: int
    gated: bool = False

    def __str__(self) -> str:
        return f"{self.depth} x {self.width}{' gated' if self.gated else ''}"


MODELS = {
    "small": [Shape(1024, 4096), Shape(2048, 1024), Shape(1024, 6144, True), Shape(3072, 1024), Shape(1024, 8192)],
    "tiny": [Shape(512, 1024), Shape(512, 512), Shape(512, 2816, True), Shape(1408, 512), Shape(512, 8192)],
}


class Stopwatch:
    """Seconds per item of an action on every item in turn: the least of several passes."""

    def __init__(self, num_threads: int, tries: int) -> None:
        self._clock = time.thread_time if num_threads == 1 else time.perf_counter
        self._tries = tries

    def seconds(self, act: Callable[[Any], object], items: Sequence[Any]) -> float:
        best = float("inf")
        for _ in range(1 + self._tries):  # the first finds cold pages
            start = self._clock()
            for item in items:
                act(item)
            best = min(best, self._clock() - start)
        return best / len(items)


def least_by_rows(
    watch: Stopwatch, num_rows: Sequence[int], depth: int, dtype: torch.dtype, act: Callable[[Tensor, Any], object],
    items: Sequence[Any],
) -> list[float]:  # fmt: skip
    """Seconds per product, for each number of rows."""
    found = []
    for count in num_rows:
        rows = torch.randn(count, depth).to(dtype)
        found.append(watch.seconds(lambda item, rows=rows: act(rows, item), items))  # type: ignore[misc]
    return found


def onednn(rows: Tensor, packed: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")
    return product


def measure(packer: Packer, shape: Shape, num_rows: Sequence[int], dtype: torch.dtype, watch: Stopwatch) -> list[str]:
    """A cell for each number of rows."""
    num_bytes = shape.depth * shape.width * dtype.itemsize
    weights = [torch.randn(shape.width, shape.depth).to(dtype)] * (WORKING_SET_BYTES // num_bytes + 1)
    half = shape.width // 2
    pack = (lambda w: packer.pack_gated(w[:half], w[half:])) if shape.gated else (lambda w: packer.pack([w]))
    matrices = [pack(weight) for weight in weights]
    ours = least_by_rows(watch, num_rows, shape.depth, dtype, lambda rows, matrix: matrix.multiply(rows), matrices)
    del matrices
    weights = [weight.clone() for weight in weights]
    plain = least_by_rows(watch, num_rows, shape.depth, dtype, torch.nn.functional.linear, weights)
    reordered = [torch.ops.mkldnn._reorder_linear_weight(weight, max(num_rows)) for weight in weights]
    del weights
    packed = least_by_rows(watch, num_rows, shape.depth, dtype, onednn, reordered)
    read = read_rate().best
    cells = []
    for count, *seconds in zip(num_rows, ours, plain, packed, strict=True):
        if count <= FEW_ROWS:
            rates = [num_bytes / s / 1e9 for s in seconds]
            cells.append(f"{rates[0]:5.1f} GB/s {100e9 * rates[0] / read:3.0f} % ({rates[1]:4.1f} {rates[2]:4.1f})")
        else:
            rates = [2e-12 * count * shape.depth * shape.width / s for s in seconds]
            cells.append(f"{rates[0]:5.2f} TF x{rates[0] / max(rates[1:]):.2f} ({rates[1]:.2f} {rates[2]:.2f})")
    return cells


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rows", nargs="+", type=positive, default=[1, 8, 32, 128, 512])
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--tries", type=positive, default=3)
    args = parser.parse_args()
    library = load_library(args.threads)
    if library is None:
        print("bench: the native kernels are not built", file=sys.stderr)
        return 1
    torch.set_num_threads(args.threads)
    watch = Stopwatch(args.threads, args.tries)
    print(
        f"{args.dtype}, {args.threads} thread(s), load {os.getloadavg()[0]:.1f}: rate, share of the read bandwidth up "
        f"to {FEW_ROWS} rows, ratio to the better peer above (torch's linear, oneDNN's packed)"
    )
    print(f"{'':18}" + "".join(f"{f'{count} rows':>30}" for count in args.rows))
    for model in args.models:
        for shape in MODELS[model]:
            cells = measure(Packer(library), shape, args.rows, getattr(torch, args.dtype), watch)
            print(f"{shape!s:18}" + "".join(f"{cell:>30}" for cell in cells), flush=True)
    library.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
