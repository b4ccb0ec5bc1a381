"""`pdserve simulate` without --compat: one placement of our own cluster, run under a virtual clock."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from deploy.arguments import check_output, count, pair_count, pairs, refuse, require, write_output
from deploy.planning.caveats import caveats
from deploy.planning.compiling import tell_if_compiling
from deploy.planning.disturbance import Targets, disturbance
from deploy.planning.events import MAX_SECONDS, checked_events
from deploy.planning.profile import THIS_MACHINE, check_measured, profile_of
from deploy.planning.subject import gpus, more_room, serving_of, workload_of
from deploy.words import counted
from pdserve.exit import ExitCode, StartError
from pdserve.settings import ConfigError
from placement.latency.shape import ModelShape
from placement.search.build import DoesNotFit, Serving, cluster_of
from placement.search.candidate import Candidate, Pool
from placement.search.job import Simulated
from placement.search.plan_file import percentiles
from placement.simulator.cluster import ClusterEvent, ClusterSpec
from placement.simulator.fast.run import compiled_parts, unsupported
from placement.simulator.requests import Outcome, requests_of
from placement.simulator.results import RequestColumns
from placement.simulator.simulate import simulate
from placement.workload.workload import Workload

MODE = "simulate"
MAX_WORKERS = 8192  # of a pool: there are tables of all pairs
_TOKEN_S = 1.5e-5  # that the real code is busy with a token; 7 to 26 us were seen
_LONG_S = 10.0
_AS_ASKED = 0.005  # of the rate: what is nearer than that is called the same
_COLUMNS = (
    "arrival_s", "prompt_tokens", "output_tokens", "ttft_s", "tpot_s", "e2e_s", "queue_s", "prefill_s", "transfer_s",
    "decode_wait_s", "decode_s",
)  # fmt: skip


def run_simulate(args: argparse.Namespace) -> int:
    """Returns the exit code."""
    refuse(args, ("backend", "requests", "rate_scale"), f"{MODE} without --compat")
    require(args, ("model", "workload", "decode"), MODE)
    if args.output is not None:
        check_output(args.output)
    _, source = workload_of(args.workload)
    profile = profile_of(args)
    serving = serving_of(args, source, profile)
    candidate = _candidate(args, serving.model)
    events = checked_events(args.event or (), candidate)
    pools = _flags(candidate)
    parallel = [f"{flag}: {pool}" for flag, pool in pools.items() if pool.gpus_per_worker > 1]
    check_measured(profile, (pool.gpu for pool in pools.values()), parallel)
    _check_room(pools, serving)
    cluster = cluster_of(candidate, serving)
    num = args.num_requests or (None if source.recorded is not None else 1000)
    workload = source.build(rate=args.rate, num_requests=num, seed=args.seed or 0)
    if workload.arrival_s[-1] > MAX_SECONDS:
        raise StartError(
            f"--workload: its {len(workload)} requests come over {workload.arrival_s[-1]:.3g} s; at most "
            f"{MAX_SECONDS:,} s are simulated: give a higher --rate or fewer --num-requests", ExitCode.WORKLOAD,
        )  # fmt: skip
    if not unsupported(cluster, workload):
        tell_if_compiling(*compiled_parts(cluster, workload))
    rows = Simulated(cluster)(workload)
    told: list[str] = []
    if events:
        rows, told = _with_events(cluster, workload, events, rows, args)
    print(f"{candidate}: {_traffic(workload, args.rate or source.own_rate)}")
    shares = serving.prefix_caching and workload.prefixes is not None and len(workload.prefixes.ids) > 0
    print("\n".join([*_summary(rows, args, shares), *told, *caveats(profile, serving, [candidate], rows)]))
    if args.output is not None:
        write_output(args.output, _lines(rows))
        print(f"{len(workload)} rows: {args.output}")
    return ExitCode.OK


def _candidate(args: argparse.Namespace, model: ModelShape) -> Candidate:
    gpu = args.gpu if args.gpu is not None else THIS_MACHINE if args.profile is not None else "h100"
    try:
        chunk = count(args.chunk) if args.chunk is not None else 2048
    except argparse.ArgumentTypeError as error:
        raise ConfigError([f"--chunk: {error}"]) from None
    decode = _pool("decode", _pairs("decode", args.decode, gpu), gpu, model)
    if args.prefill is None or (prefill := _pairs("prefill", args.prefill, gpu))["workers"] == "0":
        return Candidate(None, decode, chunk)
    return Candidate(_pool("prefill", prefill, gpu, model), decode, chunk)


def _pairs(name: str, text: str, gpu: str) -> dict[str, str]:
    """Of a pool; a number alone is that of its workers, as `serve` has it."""
    return pairs(
        name, f"workers={text}" if text.isdecimal() else text, {"workers": "1", "tp": "1", "pp": "1", "gpu": gpu}
    )


def _pool(name: str, values: Mapping[str, str], gpu: str, model: ModelShape) -> Pool:
    workers, tp, pp = (pair_count(name, key, values[key]) for key in ("workers", "tp", "pp"))
    if model.heads % tp:
        able = [str(one) for one in range(1, model.heads + 1) if model.heads % one == 0]
        raise ConfigError(
            [f"--{name}: tp is {tp}; it must divide the {model.heads} heads of {model.name}: {', '.join(able)}"]
        )
    if workers * pp > MAX_WORKERS:
        raise ConfigError([f"--{name}: workers is {workers}; it must be at most {MAX_WORKERS // pp:,}"])
    if pp > model.layers:
        raise ConfigError([f"--{name}: pp is {pp}; it must be at most the {model.layers} layers of {model.name}"])
    (kind, *more) = gpus("--gpu" if values["gpu"] == gpu else f"--{name}: gpu", values["gpu"])
    if more:
        raise ConfigError([f"--gpu is {gpu}; simulate runs one placement: give one type, or gpu=TYPE to each pool"])
    return Pool(kind, workers, tp, pp)


def _flags(candidate: Candidate) -> dict[str, Pool]:
    """Each pool by the flag that gave it."""
    pools = {"--prefill": candidate.prefill, "--decode": candidate.decode}
    return {flag: pool for flag, pool in pools.items() if pool is not None}


def _check_room(pools: Mapping[str, Pool], serving: Serving) -> None:
    """Whether each pool has step times, and room for one request. Errors: StartError naming the flag."""
    for flag, pool in pools.items():
        try:
            serving.times(pool)
            serving.blocks(pool)
        except DoesNotFit as error:
            raise StartError(f"{flag}: {error}{more_room(serving)}", ExitCode.FAILED) from None


def _with_events(
    cluster: ClusterSpec,
    workload: Workload,
    events: Sequence[ClusterEvent],
    calm: RequestColumns,
    args: argparse.Namespace,
) -> tuple[RequestColumns, list[str]]:
    """The same requests with the events, and what those did. The compiled simulator knows no events."""
    likely_s = _TOKEN_S * int(workload.output_tokens.sum())
    if likely_s > _LONG_S:
        print(
            f"--event: not compiled, {counted(len(workload), 'request')} take about {likely_s:,.0f} s; fewer: "
            "--num-requests", file=sys.stderr, flush=True,
        )  # fmt: skip
    result = simulate(cluster, requests_of(workload), events)
    targets = Targets(*(math.inf if limit is None else limit for limit in (args.slo_ttft, args.slo_tpot)))
    return result.requests, disturbance(result, calm, targets)


def _traffic(workload: Workload, asked: float | None) -> str:
    """How many requests at which rate; the rate of a few is off what was asked for, and then both are told."""
    num, drawn = counted(len(workload), "request"), workload.rate
    if not drawn:  # one, or all at once
        return num
    also = "" if asked is None or abs(drawn - asked) <= _AS_ASKED * asked else f" ({asked:.3g}/s asked for)"
    return f"{num} at {drawn:.3g}/s{also}"


def _summary(rows: RequestColumns, args: argparse.Namespace, shares: bool) -> list[str]:
    """`shares`: prompts may find their beginnings cached."""
    served = rows.outcome == Outcome.FINISHED
    if not served.any():
        return ["  no request was served"]
    found = percentiles(rows)
    lines = [
        f"  {name.removesuffix('_s').upper():5} p50 {one['p50']:.4g} s, p90 {one['p90']:.4g} s, p99 {one['p99']:.4g} s"
        for name, one in found.items()
        if name != "phase_means_s"
    ]
    phases = ", ".join(f"{name.removesuffix('_s')} {seconds:.3g} s" for name, seconds in found["phase_means_s"].items())
    lines.append(f"  mean of each phase: {phases}")
    if shares:
        cached = rows.cached_tokens[served].sum() / rows.prompt_tokens[served].sum()
        lines.append(f"  prompt tokens found cached: {100 * cached:.3g} %")
    if (unserved := int((~served).sum())) > 0:
        lines.append(f"  not served: {unserved}")
    targets = {"TTFT": args.slo_ttft, "TPOT": args.slo_tpot}
    if asked := [f"{name} {limit:g} s" for name, limit in targets.items() if limit is not None]:
        share = rows.attainment(*(math.inf if limit is None else limit for limit in targets.values()))
        lines.append(f"  within {' and '.join(asked)}: {100 * share:.2f} %")
    return lines


def _lines(rows: RequestColumns) -> str:
    columns = [getattr(rows, name) for name in _COLUMNS]
    lines = []
    for values in zip(*columns, strict=True):
        row = {name: None if np.isnan(value) else value.item() for name, value in zip(_COLUMNS, values, strict=True)}
        lines.append(json.dumps(row))
    return "\n".join(lines) + "\n"
