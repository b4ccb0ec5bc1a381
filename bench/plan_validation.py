"""Prediction against reality: the same requests through real clusters here and through the simulator.

    python -m bench.plan_validation --profile P.json [MODEL] [--plan PLAN.json] [--placements 1+1 2+1 0+1] \\
        [--workload input=256,output=32] [--rates 4,8,12] [--rounds 5] --slo-ttft 0.5 --slo-tpot 0.02 [--json F]

Placements are PREFILL+DECODE workers; 0+1 is colocated. Without MODEL the clusters run on the mock engine with the
profile's linear model, whose step times are exact: what is off then is the simulator and the delays, not the fit.
With MODEL they run the real engine, and the simulator the fit that cross-validation found best.

All clusters run all the time; whoever is not measured is held stopped (SIGSTOP). Rounds are interleaved, each with
arrivals of its own. The simulator gets the requests at the instants at which they were really sent, and TTFT counts
from there on both sides. Shown are medians over the rounds; the first tenth of a run does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from bench.arguments import duration, positive
from bench.load.result import BadAnswer
from bench.load.session import Settings, run_at, warm_up
from bench.load.summary import Objective
from bench.load.target import Target
from bench.plan_validation_figures import LATENCIES, Figures, Pair, Targets, measured, predicted, sent
from bench.plan_validation_now import at_speed, speed_now
from bench.plan_validation_twin import Limits, Placement, cluster_of, planned
from bench.profiler.cluster import running
from bench.served.process_tree import adopt_orphans, hear_signals
from bench.served.server import Server, ServerFailed
from bench.split_against_colocated import falls_through
from placement.latency.fitted_profile import Profile, load_measured_profile
from placement.simulator.cluster import ClusterSpec
from placement.simulator.requests import requests_of
from placement.simulator.simulate import simulate
from placement.workload import Workload, WorkloadSource, parse_workload_spec

WARM_REQUESTS = 8
SKIPPED = 0.1  # of each run, its beginning
TIMEOUT_S = 120.0
FAILURES = (OSError, ValueError, ServerFailed, BadAnswer)  # OSError: TimeoutError too
"""What `run` raises, each with one line to show."""


Cells = dict[tuple[Placement, float], list[tuple[Figures, Figures]]]


def compare(
    started: Mapping[str, tuple[Server, Target]],
    twins: Mapping[Placement, ClusterSpec],
    args: argparse.Namespace,
    targets: Targets,
) -> tuple[Cells, Cells]:
    """Every round, rate and placement; and, of the real engine, the same predicted at the machine's speed just then."""
    source = WorkloadSource(parse_workload_spec(args.workload))
    found: Cells = {}
    now: Cells = {}
    seed = secrets.randbelow(1 << 32)
    cells = product(range(args.rounds), args.rates, twins.items())
    for number, (turn, rate, (placement, twin)) in enumerate(cells):
        server, target = started[str(placement)]
        server.resume()
        settings = Settings(Objective(), turn, seed, duration_s=args.duration, timeout_s=TIMEOUT_S, tell_slo=False)
        sample = source.build(rate=rate, num_requests=WARM_REQUESTS, seed=turn)
        warm_up(target, sample, WARM_REQUESTS, TIMEOUT_S, seed + number)
        speed = None if args.model is None else speed_now(target, twin, *_middle(sample))
        run = run_at(target, source, rate, settings, number, lambda *_: None)
        server.park()
        if run.summary.interrupted:
            raise KeyboardInterrupt
        workload, order = sent(run.results)
        skip_s = SKIPPED * args.duration
        seen = measured(order, skip_s, targets)
        told = predicted(order, simulate(twin, requests_of(workload)).requests, skip_s, targets)
        found.setdefault((placement, rate), []).append((told, seen))
        if speed is not None:
            again = simulate(at_speed(twin, speed), requests_of(workload)).requests
            cell = predicted(order, again, skip_s, targets), seen
            now.setdefault((placement, rate), []).append(cell)
            print(f"  lone requests took {speed.first:.2f} x the predicted TTFT, {speed.later:.2f} x TPOT",
                  file=sys.stderr)  # fmt: skip
        print(_run_line(turn, placement, rate, (told, seen), len(order), run.summary.late_p99_s), file=sys.stderr)
    return found, now


def _middle(sample: Workload) -> tuple[int, int]:
    return int(np.median(sample.prompt_tokens)), int(np.median(sample.output_tokens))


def _run_line(
    turn: int, placement: Placement, rate: float, pair: tuple[Figures, Figures], num: int, late_s: float
) -> str:
    told, seen = pair
    return (
        f"round {turn + 1} {placement!s:<12} {rate:5.1f}/s {num:4} requests: TTFT p50 {1e3 * seen.ttft_p50_s:7.1f} ms "
        f"(predicted {1e3 * told.ttft_p50_s:7.1f}), TPOT p50 {1e3 * seen.tpot_p50_s:6.2f} "
        f"({1e3 * told.tpot_p50_s:6.2f}), late p99 {1e3 * late_s:.1f} ms, load {os.getloadavg()[0]:.1f}"
    )


def report(cells: Cells, targets: Targets) -> tuple[list[str], list[dict[str, Any]]]:
    """The table and the same as data."""
    names = [name.removesuffix("_s").replace("_", " ").upper() for name in LATENCIES]
    lines = [f"{'predicted / measured (error)':<22}" + "".join(f"{name:>26}" for name in names) + f"{'attainment':>24}"]
    rows = []
    for (placement, rate), rounds in sorted(cells.items(), key=lambda item: (str(item[0][0]), item[0][1])):
        pair = Pair.of(rounds)
        cell = [
            f"{1e3 * getattr(pair.predicted, name):.1f}/{1e3 * getattr(pair.measured, name):.1f} ms "
            f"({100 * pair.error(name):+.1f} %)"
            for name in LATENCIES
        ]
        shares = f"{100 * pair.predicted.attainment:.1f}/{100 * pair.measured.attainment:.1f} %"
        lines.append(
            f"{placement!s:<12} {rate:5.1f}/s  " + "".join(f"{one:>26}" for one in cell)
            + f"{f'{shares} ({pair.attainment_points:+.1f})':>24}"
        )  # fmt: skip
        rows.append({"placement": str(placement), "rate": rate, "predicted": asdict(pair.predicted),
                     "measured": asdict(pair.measured), "rounds": len(rounds)})  # fmt: skip
    for placement in dict.fromkeys(placement for placement, _ in cells):
        told, seen = (goodput(cells, placement, side, targets.attainment) for side in ("predicted", "measured"))
        lines.append(f"{placement!s:<12} goodput: predicted {told}, measured {seen} requests/s")
    return lines, rows


def goodput(cells: Cells, placement: Placement, side: str, wanted: float) -> str:
    """Where attainment falls through the wanted share, as a number or as a bound by the rates tried."""
    rates = sorted(rate for one, rate in cells if one == placement)
    shares = [getattr(Pair.of(cells[placement, rate]), side).attainment for rate in rates]
    found = falls_through(rates, shares, wanted)
    return f"above {rates[-1]:g}" if found is None else f"below {rates[0]:g}" if found == 0 else f"{found:.2f}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.plan_validation", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", nargs="?", metavar="MODEL", help="for the real engine; without it the mock one")
    parser.add_argument("--profile", type=Path, required=True, metavar="P.json", help="of pdserve profile")
    parser.add_argument("--plan", type=Path, metavar="PLAN.json", help="of pdserve plan: its placement, before others")
    parser.add_argument("--placements", type=Placement.parse, nargs="+", metavar="P+D",
                        default=[Placement(1, 1), Placement(2, 1), Placement(0, 1)])  # fmt: skip
    parser.add_argument("--workload", default="input=256,output=32", metavar="W")
    parser.add_argument("--rates", type=lambda text: [duration(one) for one in text.split(",")], default=[4.0])
    parser.add_argument("--duration", type=duration, default=20.0, metavar="S", help="of a run")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--slo-ttft", type=duration, default=0.5, metavar="S")
    parser.add_argument("--slo-tpot", type=duration, default=0.02, metavar="S")
    parser.add_argument("--chunk", type=positive, default=512, metavar="N", help="tokens of a step")
    parser.add_argument("--max-num-seqs", type=positive, default=64, metavar="N")
    parser.add_argument("--max-model-len", type=positive, default=2048, metavar="N")
    parser.add_argument("--kv-bytes", type=positive, default=1 << 26, metavar="N", help="of each worker")
    parser.add_argument("--json", type=Path, metavar="F")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace, work_dir: Path) -> None:
    """Start, measure, tell."""
    profile = load_measured_profile(args.profile)
    limits = Limits(args.chunk, args.max_num_seqs, args.max_model_len, args.kv_bytes)
    placements = list(args.placements)
    if args.plan is not None:
        chosen, chunk = planned(args.plan)
        placements = [chosen, *(one for one in placements if one != chosen)][:3]
        limits = replace(limits, chunk_tokens=int(chunk or limits.chunk_tokens))
    targets = Targets(args.slo_ttft, args.slo_tpot)
    mock = args.model is None
    if mock and profile.served is not None:
        raise ValueError(
            f"{args.profile}: its delays are the real engine's; "
            "`pdserve profile --mock-delays` measures the mock engine's"
        )
    engine = ["--mock", str(args.profile.absolute())] if mock else [args.model, "--threads", "1", *_dtype(profile)]
    twins = {one: cluster_of(one, profile, limits, mock) for one in placements}
    clusters = {str(one): [*engine, *one.flags(), *limits.flags()] for one in placements}
    with running(clusters, work_dir) as started:
        for server, _ in started.values():
            server.park()
        cells, now = compare(started, twins, args, targets)
    what = "the mock engine" if mock else f"{args.model}"
    print(f"{what}, {args.workload}, {args.rounds} rounds of {args.duration:g} s, {os.cpu_count()} cores, "
          f"load {os.getloadavg()[0]:.1f}; TTFT <= {targets.ttft_s:g} s and TPOT <= {targets.tpot_s:g} s")  # fmt: skip
    lines, rows = report(cells, targets)
    print("\n".join(lines))
    if now:
        print("\nthe same, predicted at the machine's speed just before each run, by lone requests:")
        print("\n".join(report(now, targets)[0]))
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


def _dtype(profile: Profile) -> list[str]:
    return [] if profile.subject is None else ["--dtype", profile.subject.dtype]


def main() -> int:
    args = parse()
    adopt_orphans()
    hear_signals()
    try:
        with tempfile.TemporaryDirectory(prefix="plan-validation-") as name:
            run(args, Path(name))
    except KeyboardInterrupt:
        print("plan_validation: stopped", file=sys.stderr)
        return 130
    except FAILURES as error:
        print(f"plan_validation: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
