"""Prediction against reality: the same requests through real clusters here and through the simulator.

    python -m bench.plan_validation --profile P.json [MODEL] [--plan PLAN.json] [--placements 1+1 2+1 0+1] \\
        [--workload input=256,output=32] [--rates 4,8,12] [--rounds 5] --slo-ttft 0.5 --slo-tpot 0.02 [--json F]
    python -m bench.plan_validation --profile P.json --measured F

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
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from bench.arguments import duration, per_second, positive
from bench.load.result import BadAnswer
from bench.load.session import Settings, run_at, warm_up
from bench.load.summary import Objective
from bench.load.target import Target
from bench.plan_validation_figures import Sent, Targets, measured, predicted
from bench.plan_validation_inputs import check_json, check_profile, flagged, requests_for
from bench.plan_validation_now import at_speed, speed_now
from bench.plan_validation_report import Told, by_scale, cells_of, report
from bench.plan_validation_runs import Run, Validation
from bench.plan_validation_twin import Limits, Placement, cluster_of, planned
from bench.profiler.cluster import running
from bench.served.process_tree import adopt_orphans, hear_signals
from bench.served.server import Server, ServerFailed
from pdserve.byte_sizes import memory_size
from pdserve.exit import ExitCode, StartError
from pdserve.settings import ConfigError
from placement.latency.fitted_profile import Profile, load_measured_profile
from placement.simulator.cluster import ClusterSpec
from placement.simulator.requests import requests_of
from placement.simulator.results import RequestColumns
from placement.simulator.simulate import simulate
from placement.workload import Workload, WorkloadSource

WARM_REQUESTS = 8
DEFAULT = Targets(0.5, 0.02)
SKIPPED = 0.1  # of each run, its beginning
TIMEOUT_S = 120.0
FAILURES = (OSError, ValueError, ServerFailed, BadAnswer)  # OSError: TimeoutError too
"""What `run` raises, each with one line to show."""


def measure(
    started: Mapping[str, tuple[Server, Target]],
    twins: Mapping[Placement, ClusterSpec],
    args: argparse.Namespace,
    targets: Targets,
    source: WorkloadSource,
) -> Told:
    """Every round, rate and placement, and what was predicted of it."""
    found = []
    seed = secrets.randbelow(1 << 32)
    cells = product(range(args.rounds), args.rates, twins.items())
    for number, (turn, rate, (placement, twin)) in enumerate(cells):
        server, target = started[str(placement)]
        server.resume()
        settings = Settings(Objective(), turn, seed, duration_s=args.duration, timeout_s=TIMEOUT_S, tell_slo=False)
        sample = source.build(rate=rate, num_requests=WARM_REQUESTS, seed=turn)
        warm_up(target, sample, WARM_REQUESTS, TIMEOUT_S, seed + number)
        speed = None if args.model is None else speed_now(target, twin, *_middle(sample))
        seen = run_at(target, source, rate, settings, number, lambda *_: None)
        server.park()
        if seen.summary.interrupted:
            raise KeyboardInterrupt
        run = Run(placement, rate, turn, Sent.of(seen.results, SKIPPED * args.duration), speed)
        columns = _simulated(twin, run)
        print(_run_line(run, columns, targets, seen.summary.late_p99_s), file=sys.stderr)
        found.append((run, columns))
    return found


def _middle(sample: Workload) -> tuple[int, int]:
    return int(np.median(sample.prompt_tokens)), int(np.median(sample.output_tokens))


def _run_line(run: Run, columns: RequestColumns, targets: Targets, late_s: float) -> str:
    told, seen = predicted(run.sent, columns, targets), measured(run.sent, targets)
    line = (
        f"round {run.turn + 1} {run.placement!s:<12} {run.rate:5.1f}/s {len(run.sent.sent_s):4} requests: "
        f"TTFT p50 {1e3 * seen.ttft_p50_s:7.1f} ms (predicted {1e3 * told.ttft_p50_s:7.1f}), "
        f"TPOT p50 {1e3 * seen.tpot_p50_s:6.2f} ({1e3 * told.tpot_p50_s:6.2f}), "
        f"late p99 {1e3 * late_s:.1f} ms, load {os.getloadavg()[0]:.1f}"
    )
    if run.speed is not None:
        line += f"; lone requests {run.speed.first:.2f} x the predicted TTFT, {run.speed.later:.2f} x TPOT"
    return line


def show(told: Told, twins: Mapping[Placement, ClusterSpec], targets: Targets) -> list[dict[str, Any]]:
    """Print; the table as data. What the real engine did is also predicted at the machine's speed just before."""
    lines, rows = report(cells_of(told, targets), targets)
    print("\n".join([*lines, "", *by_scale(told, targets)]))
    now = [
        (run, _simulated(at_speed(twins[run.placement], run.speed), run)) for run, _ in told if run.speed is not None
    ]
    if now:
        print("\nthe same, predicted at the machine's speed just before each run, by lone requests:")
        print("\n".join(report(cells_of(now, targets), targets)[0]))
    return rows


def _simulated(twin: ClusterSpec, run: Run) -> RequestColumns:
    return simulate(twin, requests_of(run.sent.workload)).requests


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.plan_validation", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", nargs="?", metavar="MODEL", help="for the real engine; without it the mock one")
    parser.add_argument(
        "--profile",
        type=Path,
        required=True,
        metavar="P.json",
        help="of pdserve profile; without MODEL made with --mock-delays",
    )
    parser.add_argument("--plan", type=Path, metavar="PLAN.json", help="of pdserve plan: its placement, before others")
    parser.add_argument("--placements", type=Placement.parse, nargs="+", metavar="P+D",
                        default=[Placement(1, 1), Placement(2, 1), Placement(0, 1)])  # fmt: skip
    parser.add_argument("--workload", default="input=256,output=32", metavar="W")
    parser.add_argument("--rates", type=lambda text: [per_second(one) for one in text.split(",")], default=[4.0])
    parser.add_argument("--duration", type=duration, default=20.0, metavar="S", help="of a run")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--slo-ttft", type=duration, metavar="S", help="default: 0.5, or of --measured")
    parser.add_argument("--slo-tpot", type=duration, metavar="S", help="default: 0.02, or of --measured")
    parser.add_argument("--chunk", type=positive, default=512, metavar="N", help="tokens of a step")
    parser.add_argument("--max-num-seqs", type=positive, default=64, metavar="N")
    parser.add_argument("--max-model-len", type=positive, default=2048, metavar="N")
    parser.add_argument("--kv-bytes", type=memory_size, default=1 << 26, metavar="N", help="of each worker: 64M")
    parser.add_argument("--json", type=Path, metavar="F", help="write every request and the table there")
    parser.add_argument(
        "--measured", type=Path, metavar="F",
        help="start nothing, predict what --json of another run holds; of the flags only --profile and the SLOs count",
    )  # fmt: skip
    return parser.parse_args(arguments)


def run(args: argparse.Namespace, work_dir: Path) -> None:
    """Start and measure, or take what was measured; tell."""
    with flagged("--profile", args.profile):
        profile = load_measured_profile(args.profile)
    if args.json is not None:
        check_json(args.json)
    with flagged("--measured", args.measured):
        validation = None if args.measured is None else Validation.load(args.measured)
    check_profile(args.profile, profile, (args.model if validation is None else validation.model) is None)
    targets = DEFAULT if validation is None else validation.targets
    targets = replace(targets, ttft_s=args.slo_ttft or targets.ttft_s, tpot_s=args.slo_tpot or targets.tpot_s)
    if validation is not None:
        placements = list(dict.fromkeys(one.placement for one in validation.runs))
        twins = _twins(placements, profile, validation.limits, validation.model is None)
        told: Told = [(one, _simulated(twins[one.placement], one)) for one in validation.runs]
    else:
        placements, limits = _asked(args)
        source = requests_for(args)
        twins = _twins(placements, profile, limits, args.model is None)
        told = _started(args, profile, limits, twins, targets, source, work_dir)
        runs = tuple(one for one, _ in told)
        validation = Validation(args.model, args.workload, args.duration, targets, limits, runs)
    rounds = 1 + max((one.turn for one in validation.runs), default=0)
    print(
        f"{validation.model or 'the mock engine'}, {validation.workload}, {rounds} rounds of "
        f"{validation.duration_s:g} s, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"TTFT <= {targets.ttft_s:g} s and TPOT <= {targets.tpot_s:g} s"
    )
    rows = show(told, twins, targets)
    if args.json is not None:
        args.json.write_text(json.dumps({**validation.to_json(), "table": rows}) + "\n")


def _asked(args: argparse.Namespace) -> tuple[list[Placement], Limits]:
    limits = Limits(args.chunk, args.max_num_seqs, args.max_model_len, int(args.kv_bytes))
    placements = list(args.placements)
    if args.plan is not None:
        with flagged("--plan", args.plan):
            chosen, chunk = planned(args.plan)
        placements = [chosen, *(one for one in placements if one != chosen)][:3]
        limits = replace(limits, chunk_tokens=int(chunk or limits.chunk_tokens))
    return placements, limits


def _twins(
    placements: Sequence[Placement], profile: Profile, limits: Limits, mock: bool
) -> dict[Placement, ClusterSpec]:
    return {one: cluster_of(one, profile, limits, mock) for one in placements}


def _started(
    args: argparse.Namespace, profile: Profile, limits: Limits, twins: Mapping[Placement, ClusterSpec],
    targets: Targets, source: WorkloadSource, work_dir: Path,
) -> Told:  # fmt: skip
    mock = ["--mock", str(args.profile.absolute())]
    engine = mock if args.model is None else [args.model, "--threads", "1", *_dtype(profile)]
    clusters = {str(one): [*engine, *one.flags(), *limits.flags()] for one in twins}
    with running(clusters, work_dir) as started:
        for server, _ in started.values():
            server.park()
        return measure(started, twins, args, targets, source)


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
    except (ConfigError, StartError) as error:
        print(f"plan_validation: error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, StartError) else ExitCode.CONFIG
    except FAILURES as error:
        why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        print(f"plan_validation: error: {why}", file=sys.stderr)
        return ExitCode.FAILED
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
