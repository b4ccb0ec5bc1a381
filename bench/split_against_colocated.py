"""Split against colocated: the same model, cores and requests; attainment over rates for several latency targets.

    python -m bench.split_against_colocated [--model tiny] [--rates 0.3,0.6,0.9,1.2] [--duration 40] [--rounds 2] \\
        [--workload input=2000,output=100] [--slo-ttft 3] [--slo-tpot 0.01 0.015 0.02 0.03 0.05] [--png F] [--json F]

Both run all the time, but whoever is not measured is held stopped (SIGSTOP). Rounds alternate who is first; a round's
seed is the same for both. One thread in each worker: the split has one prefill and one decode worker, colocated has two
workers that do both (chunked prefill beside decodes). Servers are not told the targets, so a run serves for all of
them: attainment is counted from the requests afterwards. With --mock the steps take stated times and no processor, so
a noisy machine does not hide what scheduling does. Goodput is where the pooled attainment curve falls through
the wanted share, by a straight line between the two rates around it.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.arguments import duration, positive
from bench.load.plots import as_png, curves
from bench.load.result import Outcome, Result
from bench.load.session import Settings, run_at, warm_up
from bench.load.statistics import Spread, wilson
from bench.load.summary import Objective
from bench.load.target import Target, parse_target
from bench.served.__main__ import all_started, make_model
from bench.served.process_tree import adopt_orphans, hear_signals
from bench.served.server import Server
from bench.served.systems import MODEL_NAME, OURS, THEIRS, Setting
from placement.workload import WorkloadSource, parse_workload_spec

WARM_REQUESTS = 4
KEPT = 0.1  # of a run's begin does not count: the server is still filling up


@dataclass(frozen=True, slots=True)
class Cell:
    """All rounds of one system at one rate."""

    system: str
    rate: float
    results: tuple[Result, ...]

    def attainment(self, objective: Objective) -> float:
        return self.met(objective) / max(1, len(self.results))

    def met(self, objective: Objective) -> int:
        return sum(one.meets(objective.ttft_s, objective.tpot_s) for one in self.results)


def falls_through(rates: Sequence[float], shares: Sequence[float], wanted: float) -> float | None:
    """Where the curve first falls below `wanted`; None: it never did; 0: it begins below."""
    before_rate, before = 0.0, 1.0
    for rate, share in zip(rates, shares, strict=True):
        if share < wanted:
            if before_rate == 0.0:
                return 0.0
            return before_rate + (rate - before_rate) * (before - wanted) / (before - share)
        before_rate, before = rate, share
    return None


def measure(servers: Sequence[Server], args: argparse.Namespace, source: WorkloadSource) -> list[Cell]:
    """Every rate, every round, everyone."""
    found: dict[tuple[str, float], list[Result]] = {}
    prompt_seed = secrets.randbelow(1 << 32)
    number = 0
    for rate in args.rates:
        for turn in range(args.rounds):
            settings = Settings(Objective(), turn, prompt_seed, duration_s=args.duration, timeout_s=120.0)
            for server in servers if turn % 2 == 0 else reversed(servers):
                server.resume()
                target = _target(server)
                sample = source.build(rate=rate, num_requests=WARM_REQUESTS, seed=turn)
                warm_up(target, sample, WARM_REQUESTS, 120.0, prompt_seed + number)
                run = run_at(target, source, rate, settings, number, lambda *_: None)
                if run.summary.interrupted:
                    raise KeyboardInterrupt
                server.park()
                kept = [one for one in run.results if one.intended_s >= KEPT * args.duration]
                found.setdefault((server.name, rate), []).extend(kept)
                print(_line(server.name, rate, kept), flush=True)
            number += 1
    return [Cell(system, rate, tuple(results)) for (system, rate), results in found.items()]


def _target(server: Server) -> Target:
    target = parse_target(f"http://127.0.0.1:{server.port}")
    return replace(target, model=MODEL_NAME, vocab_size=4096)


def _line(system: str, rate: float, results: Sequence[Result]) -> str:
    ttft = Spread.of([one.ttft_s for one in results if one.ttft_s is not None])
    tpot = Spread.of([one.tpot_s for one in results if one.outcome is Outcome.OK])
    lost = sum(one.outcome is not Outcome.OK for one in results)
    late = Spread.of([one.late_s for one in results])
    return (
        f"{system:<20} {rate:5.2f}/s  {len(results):3} requests  TTFT p50 {ttft.p50:6.2f} p90 {ttft.p90:6.2f} s  "
        f"TPOT p50 {1e3 * tpot.p50:6.1f} p90 {1e3 * tpot.p90:6.1f} ms  lost {lost}  late p99 {1e3 * late.p99:.0f} ms"
    )


def table(cells: Sequence[Cell], objective: Objective, wanted: float) -> tuple[list[str], dict[str, float | None]]:
    """Attainment at every rate with its 95 % limits, and each system's goodput."""
    rates = sorted({cell.rate for cell in cells})
    lines = [f"\nTTFT <= {objective.ttft_s:g} s and TPOT <= {1e3 * (objective.tpot_s or 0):g} ms: % met (95 % limits)"]
    lines.append(f"  {'requests/s':<20}" + "".join(f"{rate:>16.2f}" for rate in rates) + f"{'goodput':>10}")
    goodput: dict[str, float | None] = {}
    for system in dict.fromkeys(cell.system for cell in cells):
        its = sorted((cell for cell in cells if cell.system == system), key=lambda cell: cell.rate)
        limits = [wilson(cell.met(objective), len(cell.results)) for cell in its]
        shown = [
            f"{100 * cell.attainment(objective):.0f} ({100 * one.low:.0f}..{100 * one.high:.0f})"
            for cell, one in zip(its, limits, strict=True)
        ]
        shares = [cell.attainment(objective) for cell in its]
        goodput[system] = falls_through([cell.rate for cell in its], shares, wanted)
        best = (
            "none"
            if goodput[system] == 0
            else f">{rates[-1]:g}"
            if goodput[system] is None
            else f"{goodput[system]:.2f}"
        )
        lines.append(f"  {system:<20}" + "".join(f"{one:>16}" for one in shown) + f"{best:>10}")
    return lines, goodput


def ratio_line(goodput: dict[str, float | None], first: str, second: str) -> str:
    ours, theirs = goodput[first], goodput[second]
    if not ours or not theirs:
        return f"  no ratio: {first} or {second} is outside the rates that were tried"
    return f"  goodput of {first} is {ours / theirs:.2f} x that of {second}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.split_against_colocated", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--model", default="tiny", help="tiny (28 M), small (Qwen3-0.6B shape), or a model directory")
    parser.add_argument(
        "--mock", type=Path, metavar="PROFILE.json", help="steps take what this says, nothing is computed"
    )
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--workload", default="input=2000,output=100")
    parser.add_argument(
        "--rates", type=lambda text: sorted(map(duration, text.split(","))), default=[0.3, 0.6, 0.9, 1.2]
    )
    parser.add_argument("--duration", type=duration, default=40.0, help="seconds of arrivals of each run")
    parser.add_argument("--rounds", type=positive, default=2)
    parser.add_argument("--slo-ttft", type=duration, default=3.0)
    parser.add_argument("--slo-tpot", type=duration, nargs="+", default=[0.01, 0.015, 0.02, 0.03, 0.05])
    parser.add_argument("--attainment", type=float, default=0.9)
    parser.add_argument("--systems", nargs="+", choices=[*OURS, *THEIRS], default=["pdserve-split", "pdserve-replicas"])
    parser.add_argument("--vllm-env", type=Path, metavar="DIR", help="for vllm systems; see docs/benchmarks-vllm.md")
    parser.add_argument("--png", type=Path, metavar="F")
    parser.add_argument("--json", type=Path, metavar="F")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace, work_dir: Path) -> None:
    source = WorkloadSource(parse_workload_spec(args.workload))
    cores = tuple(sorted(os.sched_getaffinity(0))[:2])
    model = make_model(args.model, args.dtype, work_dir)
    env = args.vllm_env.absolute() if args.vllm_env else None
    flags = ["--threads", "1"] + (["--mock", str(args.mock.absolute())] if args.mock else [])
    setting = Setting(model, args.dtype, 4096, 1, (cores[0], cores[-1]), env, flags)
    what = f"steps of {args.mock}" if args.mock else f"{args.model}, {args.dtype}"
    print(f"{what}, {args.workload}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with all_started(args.systems, setting, work_dir) as servers:
        cells = measure(servers, args, source)
    report = {"cells": [
        {"system": one.system, "rate": one.rate,
         "requests": [[round(r.intended_s, 3), r.outcome.value, r.ttft_s, r.tpot_s] for r in one.results]}
        for one in cells]}  # fmt: skip
    goodputs: dict[str, dict[str, float | None]] = {}
    for tpot_s in args.slo_tpot:
        lines, goodput = table(cells, Objective(args.slo_ttft, tpot_s), args.attainment)
        print("\n".join([*lines, ratio_line(goodput, args.systems[0], args.systems[-1])]))
        goodputs[f"{tpot_s:g}"] = goodput
    if args.json is not None:
        args.json.write_text(json.dumps(report | {"goodput": goodputs}) + "\n")
    if args.png is not None:
        as_png(curves(_panels(cells, args), 100 * args.attainment), args.png)


def _panels(cells: Sequence[Cell], args: argparse.Namespace) -> dict[str, dict[str, list[tuple[float, float]]]]:
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for tpot_s in args.slo_tpot:
        objective = Objective(args.slo_ttft, tpot_s)
        panel = found.setdefault(f"TPOT <= {1e3 * tpot_s:g} ms", {})
        for cell in cells:
            panel.setdefault(cell.system, []).append((cell.rate, 100 * cell.attainment(objective)))
    return found


def main() -> int:
    args = parse()
    adopt_orphans()
    hear_signals()
    try:
        with tempfile.TemporaryDirectory(prefix="split-colocated-") as name:
            run(args, Path(name))
    except KeyboardInterrupt:
        print("split_against_colocated: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
