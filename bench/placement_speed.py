"""CPU time of planning by pdserve's own rules beside its gates: warm, and in a fresh process.

    python -m bench.placement_speed [--whole-hour] [PART ...]

The hour on 1,000 GPUs is slices of a minute, each with requests of its own, so that memory stays bounded: where the
rate does not change, all minutes are drawn from the same distribution. A few are run, and what sixty would take is
printed; with --whole-hour all sixty are run once.
Parts that need ../shared/data say so and are left out where it is not.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench import placement_compat
from bench.plan_quality import CASES, DATA, Case, case_of
from placement.hardware.catalogue import gpu_type
from placement.latency.shape import KNOWN_SHAPES
from placement.search.bounds import Slo
from placement.search.build import Serving, cluster_of
from placement.search.candidate import Candidate, Pool
from placement.search.job import confirmed, search, traffic
from placement.search.question import Price, Question
from placement.search.search import Search
from placement.search.space import Space, candidates
from placement.simulator.fast.run import simulate_fast
from placement.workload.source import WorkloadSource
from placement.workload.spec import parse_workload_spec

REPEATS = 3
SLICE_S, HOUR_SLICES = 60.0, 60
BOUNDS = "plan --model llama-3.1-70b --gpus 16 --workload azure-conv --slo-ttft 0.5 --slo-tpot 0.05 --bounds"
DESIGNS = {  # Splitwise's names: prefill and decode GPUs
    "HH": ("h100", "h100"), "AA": ("a100", "a100"), "HA": ("h100", "a100"), "HHcap": ("h100", "h100+cap"),
}  # fmt: skip
SMALL_GPUS = 4
FRONTIER_RATES = (10.0, 20.0, 40.0)


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to do over and over."""

    name: str
    run: Callable[[], object]
    gate_s: float | None
    stretch_s: float | None
    num_requests: int = 0  # simulated to their end; 0 where that varies
    repeats: int = REPEATS
    slices: int = 0  # of an hour; 0: it is none
    whole: Callable[[], object] = print  # all of that hour


def make(part: str, directory: Path) -> Task:
    """One of PARTS; its code is compiled, or loaded, when it first runs."""
    return PARTS[part](directory)


def _case(name: str, directory: Path) -> Case:
    return case_of(*CASES[name], directory)


def _simulate(directory: Path) -> Task:
    case = _case("opt-13b, TTFT 0.25 s, TPOT 0.1 s", directory)
    gpu = gpu_type("a100")
    cluster = cluster_of(Candidate(Pool(gpu, 1, 2), Pool(gpu, 1), 2048), case.serving)
    workload = traffic(case.source, 4.0, 300, 0)
    return Task("300 requests, 13B, 3 GPUs", lambda: simulate_fast(cluster, workload), 3e-3, 1e-4, 300, 20)


def _steady(directory: Path) -> Task:
    case = _case("opt-66b, TTFT 2.5 s, TPOT 0.15 s", directory)

    def run() -> None:
        found = case.steady()
        best = search(found).best
        assert best is not None
        confirmed(best, found.question, found.serving, found.source)

    return Task(f"search 4x8 GPUs, {len(case.configurations())} placements, steady", run, 10.0, 1.0)


def _small(directory: Path) -> Task:
    """DistServe's own case of four GPUs, by our rules; bench/placement_compat.py has it by theirs."""
    case = replace(_case("opt-13b, TTFT 0.25 s, TPOT 0.1 s", directory), nodes=1, gpus=SMALL_GPUS)
    case = replace(case, slo=Slo(0.2, 0.1))

    def run() -> None:
        assert search(case.steady()).best is not None

    return Task(f"search 1x{SMALL_GPUS} GPUs, {len(case.configurations())} placements, steady", run, 0.15, 0.02)


def _compatible(directory: Path) -> Task:
    found = placement_compat.make("search_1x4")
    return Task(f"{found.name}, DistServe's rules", found.run, found.gate_s, found.stretch_s)


def _frontier(directory: Path) -> Task:
    source = WorkloadSource(parse_workload_spec("azure-conv"))
    serving = Serving(KNOWN_SHAPES["llama-2-70b"], 16384)

    def run() -> None:
        for prefill, decode in DESIGNS.values():
            space = Space(64, (gpu_type(prefill),), (gpu_type(decode),), (4, 8), chunks=(2048,), colocated=False,
                          full=False)  # fmt: skip
            for rate in FRONTIER_RATES:
                found = Search(Question(Slo(1.0, 0.1), rate, Price.COST), serving, source)
                found.screen(candidates(space, serving.model))
                assert search(found).best is not None

    return Task(
        f"frontier: {len(DESIGNS)} designs, {len(FRONTIER_RATES)} loads, <= 64 GPUs", run, 300.0, 30.0, repeats=1
    )


def _hour(model: str, placement: Candidate, rate: float, slices: int, directory: Path) -> Task:
    source = WorkloadSource(parse_workload_spec("azure-conv"))
    cluster = cluster_of(placement, Serving(KNOWN_SHAPES[model], 16384))
    num = int(rate * SLICE_S)

    def run(slices: int) -> None:
        for seed in range(slices):
            simulate_fast(cluster, traffic(source, rate, num, seed))

    name = f"{placement.gpus:,} GPUs, {rate:,.0f}/s, {slices} of the hour's {HOUR_SLICES} min"
    return Task(name, lambda: run(slices), 60.0, 10.0, slices * num, 1, slices, lambda: run(HOUR_SLICES))


def _prefixes(caching: bool, directory: Path) -> Task:
    """Long prompts that begin alike; without caching they are what the cache costs the simulation beside."""
    serving = Serving(KNOWN_SHAPES["llama-3.1-8b"], 200_000, prefix_caching=caching)
    cluster = cluster_of(Candidate(Pool(_H100, 8, 1), Pool(_H100, 8, 1), 2048), serving)
    workload = traffic(WorkloadSource(parse_workload_spec("mooncake")), 20.0, 4000, 0, 200_000)
    name = f"{len(workload):,} prompts that share, 16 GPUs, caches {'on' if caching else 'off'}"
    return Task(name, lambda: simulate_fast(cluster, workload), None, None, len(workload))


_H100 = gpu_type("h100")
_LARGE = Candidate(Pool(_H100, 150, 4), Pool(_H100, 100, 4), 2048)  # what 1,000/s of llama-3.1-70b need
_SMALL = Candidate(Pool(_H100, 600, 1), Pool(_H100, 400, 1), 2048)
PARTS: dict[str, Callable[[Path], Task]] = {
    "simulate": _simulate,
    "small": _small,
    "compatible": _compatible,
    "steady": _steady,
    "frontier": _frontier,
    "prefixes": partial(_prefixes, True),
    "no-prefixes": partial(_prefixes, False),
    "thousand": partial(_hour, "llama-3.1-70b", _LARGE, 1000.0, 10),
    "thousand-2000": partial(_hour, "llama-3.1-8b", _SMALL, 2000.0, 2),
    "thousand-4000": partial(_hour, "llama-3.1-8b", _SMALL, 4000.0, 2),
}
_NEED_DATA = ("simulate", "small", "compatible", "steady")


def cpu_s(run: Callable[[], object]) -> float:
    before = time.process_time()
    run()
    return time.process_time() - before


def children_cpu_s(command: list[str], cache: str) -> float:
    """CPU seconds of a process from its start to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    given = ["env", f"NUMBA_CACHE_DIR={cache}", *command]
    subprocess.run(given, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


_ALL = [*PARTS, "bounds"]


def fresh_command(part: str, directory: str) -> list[str]:
    code = f"import bench.placement_speed as b; from pathlib import Path; b.make({part!r}, Path({directory!r})).run()"
    return [sys.executable, "-c", code]


def main() -> int:
    """One line a part."""
    parser = argparse.ArgumentParser(prog="python -m bench.placement_speed", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(_ALL)} (default: all)")
    parser.add_argument("--whole-hour", action="store_true", help="simulate every minute of the hours")
    args = parser.parse_args()
    whole_hour, chosen = args.whole_hour, args.parts or _ALL
    if unknown := [one for one in chosen if one not in _ALL]:
        parser.error(f"{unknown[0]} is no part; there are {', '.join(_ALL)}")
    print(f"{'CPU seconds':<46}{'warm':>9}{'gate':>8}{'stretch':>9}{'fresh':>8}{'compile':>9}  requests/s per core")
    with tempfile.TemporaryDirectory() as directory:
        for part in chosen:
            if part in _NEED_DATA and not DATA.is_dir():
                print(f"{part}: left out, the reference data is not at {DATA}")
                continue
            with tempfile.TemporaryDirectory() as cache:  # of its own: the parts share most of their code
                _show(part, cache, directory, whole_hour)
    print("warm: min of its repeats in one process; fresh: a new process from its start, code loaded from the cache;")
    print("compile: the same with an empty cache (the first run ever, or after the code changed)")
    return 0


def _show(part: str, cache: str, directory: str, whole_hour: bool) -> None:
    if part == "bounds":
        command = [sys.executable, "-c", f"from deploy.cli import main; main({BOUNDS.split()!r})"]
        fresh = min(children_cpu_s(command, cache) for _ in range(REPEATS))
        print(
            f"{'closed form: pdserve plan --bounds':<46}{'-':>9}{0.5:>8g}{0.05:>9g}{fresh:>8.2f}{'-':>9}  -", flush=True
        )
        return
    whole = partial(children_cpu_s, fresh_command(part, directory), cache)
    compiling = whole()
    fresh = whole()
    task = make(part, Path(directory))
    task.run()
    warm = min(cpu_s(task.run) for _ in range(task.repeats))
    targets = "".join(
        f"{'-' if one is None else f'{one:g}':>{width}}" for one, width in ((task.gate_s, 8), (task.stretch_s, 9))
    )
    rate = f"{task.num_requests / warm:,.0f}" if task.num_requests else "-"
    print(f"{task.name:<46}{warm:>9.4f}{targets}{fresh:>8.2f}{compiling:>9.2f}  {rate}", flush=True)
    if task.slices:
        whole_s = cpu_s(task.whole) if whole_hour else warm * HOUR_SLICES / task.slices
        name = "  the whole hour" if whole_hour else "  the whole hour at that speed"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name:<46}{whole_s:>9.0f}{whole_s / 60.0:>7.2f}x{'':>26}  {peak:.2f} GiB peak so far", flush=True)


if __name__ == "__main__":
    sys.exit(main())
