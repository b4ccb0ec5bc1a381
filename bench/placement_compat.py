"""CPU time of the DistServe- and Splitwise-compatible simulators beside their gates: warm, and in a fresh process.

Needs the reference data (../shared/data); says so and measures nothing without it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from placement.compat.distserve import Affinity, Parallel, enumerate_configurations, read_profile
from placement.compat.distserve.goodput import Bisection, Slo
from placement.compat.distserve.instance import Backend, resolve
from placement.compat.distserve.search import search
from placement.compat.distserve.simulate import simulate
from placement.compat.requests import Requests
from placement.compat.splitwise.curves import Machines, model_of, read_curve
from placement.compat.splitwise.simulate import simulate as simulate_machines

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
REPEATS = 15
PARTS = ("simulate", "search_1x4", "search_4x8", "long", "splitwise")


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to do over and over."""

    name: str
    num_requests: int  # simulated to their end in one go; 0 where that varies (a search gives up early)
    run: Callable[[], object]
    gate_s: float | None  # CPU seconds, of PLACEMENT's targets; None: no target of its own
    stretch_s: float | None


def load(name: str) -> Any:
    return json.loads((DATA / name).read_text(encoding="utf-8"))


def reference_rows() -> list[tuple[float, int, int]]:
    return [(row[0] / 1000, row[1], row[2]) for row in load("golden-simdistserve-runs.json")["cases"][0]["requests"]]


def make(part: str) -> Task:
    """One of PARTS; its code is compiled, or loaded, when it first runs."""
    if part == "splitwise":
        return _splitwise()
    rows = reference_rows()
    profile = DATA / "distserve-a100-profile.json"
    model = read_profile(profile, "opt-66b" if part == "search_4x8" else "opt-13b")
    if part in ("simulate", "long"):
        if part == "long":
            period = rows[-1][0] + 0.5
            rows = [(at * 1.5 + copy * period * 1.5, prompt, out) for copy in range(100) for at, prompt, out in rows]
        requests = Requests.of(rows)
        instance = resolve(model, Backend.DISTSERVE, Parallel(2, 1), Parallel(1, 1))
        if part == "long":
            return Task("30,000 requests, 13B, 3 GPUs", len(rows), lambda: simulate(instance, requests), None, None)
        return Task("300 requests, 13B, 3 GPUs", len(rows), lambda: simulate(instance, requests), 3e-3, 1e-4)
    unit = Requests.of([(at * 4, prompt, output) for at, prompt, output in rows])
    nodes, gpus, slo = (1, 4, Slo(0.2, 0.1)) if part == "search_1x4" else (4, 8, Slo(2.5, 0.15))
    configurations = enumerate_configurations(model, "distserve", nodes, gpus, Affinity.LOW)
    bisection = Bisection(5.0, 0.25)
    name = f"search {nodes}x{gpus} GPUs, {len(configurations)} placements"
    targets = (0.15, 0.02) if part == "search_1x4" else (10.0, 1.0)
    return Task(name, 0, lambda: list(search(model, Backend.DISTSERVE, configurations, unit, slo, bisection)), *targets)


def _splitwise() -> Task:
    rows = [(row[0], int(row[1]), int(row[2])) for row in load("golden-splitwise-small-requests.json")["rows"]]
    requests, model = Requests.of(rows), model_of("bloom-176b")
    curve = read_curve(DATA / "splitwise-perf-medians.json", "bloom-176b", "h100-80gb", 8)
    return Task(
        "Splitwise, 1,216 requests, 3 machines", len(requests),
        lambda: simulate_machines(model, [Machines(curve, 2)], [Machines(curve, 1)], requests), None, None,
    )  # fmt: skip


def cpu_s(run: Callable[[], object]) -> float:
    before = time.process_time()
    run()
    return time.process_time() - before


def fresh_cpu_s(part: str, cache: str) -> float:
    """CPU seconds of a new process's first answer, from before its imports of the simulator on."""
    code = f"import time; t = time.process_time(); import bench.placement_compat as b; b.make({part!r}).run()\n"
    code += "print(time.process_time() - t)"
    command = ["env", f"NUMBA_CACHE_DIR={cache}", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> int:
    """One line a task."""
    if not DATA.is_dir():
        print(f"skipped: the reference data is not at {DATA}")
        return 0
    print(f"{'CPU seconds':<38}{'warm':>10}{'gate':>8}{'stretch':>9}{'fresh':>8}{'compile':>9}  requests/s per core")
    with tempfile.TemporaryDirectory() as cache:
        for part in PARTS:
            compiling = fresh_cpu_s(part, cache)
            fresh = min(fresh_cpu_s(part, cache) for _ in range(2))
            task = make(part)
            task.run()
            warm = min(cpu_s(task.run) for _ in range(REPEATS))
            targets = "".join(
                f"{'-' if one is None else f'{one:g}':>{width}}"
                for one, width in ((task.gate_s, 8), (task.stretch_s, 9))
            )
            rate = f"{task.num_requests / warm:,.0f}" if task.num_requests else "-"
            print(f"{task.name:<38}{warm:>10.5f}{targets}{fresh:>8.2f}{compiling:>9.2f}  {rate}", flush=True)
    print(
        "warm: min of", REPEATS, "in one process; fresh: a new process, imports included, code loaded from the cache;"
    )
    print("compile: the same with an empty cache (the first run ever, or after the code changed)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
