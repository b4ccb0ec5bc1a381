"""`pdserve simulate` without --compat: one placement of our own cluster, run under a virtual clock."""

from __future__ import annotations

import argparse
import json

import numpy as np

from deploy.arguments import check_output, count, pair_count, pairs, refuse, require, write_output
from deploy.planning.subject import gpus, profile_of, serving_of, workload_of
from pdserve.exit import ExitCode, StartError
from pdserve.settings import ConfigError
from placement.search.build import DoesNotFit, cluster_of
from placement.search.candidate import Candidate, Pool
from placement.search.job import Simulated
from placement.search.plan_file import percentiles
from placement.simulator.results import RequestColumns

MODE = "simulate"
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
    candidate = _candidate(args)
    try:
        cluster = cluster_of(candidate, serving)
    except (DoesNotFit, ValueError) as error:
        raise StartError(str(error), ExitCode.FAILED) from None
    num = args.num_requests or (None if source.recorded is not None else 1000)
    workload = source.build(rate=args.rate, num_requests=num, seed=args.seed or 0)
    rows = Simulated(cluster)(workload)
    print(f"{candidate}: {len(workload)} requests at {workload.rate:.3g}/s")
    print("\n".join([*_summary(rows, args), *([] if profile is None else profile.lacks())]))
    if args.output is not None:
        write_output(args.output, _lines(rows))
        print(f"{len(workload)} rows: {args.output}")
    return ExitCode.OK


def _candidate(args: argparse.Namespace) -> Candidate:
    gpu = gpus("--gpu", args.gpu or ("this-machine" if args.profile is not None else "h100"))[0]
    chunk = count(args.chunk) if args.chunk is not None else 2048
    decode = _pool("decode", args.decode, gpu.name)
    return Candidate(None if args.prefill is None else _pool("prefill", args.prefill, gpu.name), decode, chunk)


def _pool(name: str, text: str, gpu: str) -> Pool:
    values = pairs(name, text, {"workers": "1", "tp": "1", "pp": "1", "gpu": gpu})
    numbers = (pair_count(name, key, values[key]) for key in ("workers", "tp", "pp"))
    try:
        return Pool(gpus(f"--{name}", values["gpu"])[0], *numbers)
    except ValueError as error:
        raise ConfigError([f"--{name}: {error}"]) from None


def _summary(rows: RequestColumns, args: argparse.Namespace) -> list[str]:
    if not (rows.outcome == 1).any():
        return ["  no request was served"]
    found = percentiles(rows)
    lines = [
        f"  {name.removesuffix('_s').upper():5} p50 {one['p50']:.4g} s, p90 {one['p90']:.4g} s, p99 {one['p99']:.4g} s"
        for name, one in found.items()
        if name != "phase_means_s"
    ]
    phases = ", ".join(f"{name.removesuffix('_s')} {seconds:.3g} s" for name, seconds in found["phase_means_s"].items())
    lines.append(f"  mean of each phase: {phases}")
    if (unserved := int((rows.outcome != 1).sum())) > 0:
        lines.append(f"  not served: {unserved}")
    if args.slo_ttft is not None and args.slo_tpot is not None:
        share = rows.attainment(args.slo_ttft, args.slo_tpot)
        lines.append(f"  within TTFT {args.slo_ttft:g} s and TPOT {args.slo_tpot:g} s: {100 * share:.2f} %")
    return lines


def _lines(rows: RequestColumns) -> str:
    columns = [getattr(rows, name) for name in _COLUMNS]
    lines = []
    for values in zip(*columns, strict=True):
        row = {name: None if np.isnan(value) else value.item() for name, value in zip(_COLUMNS, values, strict=True)}
        lines.append(json.dumps(row))
    return "\n".join(lines) + "\n"
