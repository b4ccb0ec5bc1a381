"""`--compat distserve`: one placement simulated, or every placement searched, by DistServe's rules."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from deploy.arguments import pair_count, pairs, refuse, require, write_output
from deploy.compat.timings import check_files, json_lines, percentiles
from pdserve.exit import ExitCode
from placement.compat.distserve import Affinity, Parallel, enumerate_colocated, enumerate_configurations, read_profile
from placement.compat.distserve.goodput import Bisection, Goodput, Slo, best_of
from placement.compat.distserve.instance import Backend, resolve
from placement.compat.requests import read_requests

MODE = "--compat distserve"
PARALLEL = {"tp": "1", "pp": "1"}
PLAN = ("max_rate_per_gpu", "resolution", "nodes", "gpus_per_node", "affinity", "slo_ttft", "slo_tpot")


def run_simulate(args: argparse.Namespace) -> int:
    """One placement; returns the exit code."""
    require(args, ("profile", "model", "prefill", "requests", "output"), MODE)
    refuse(args, ("slo_ttft", "slo_tpot"), f"simulate {MODE}")
    backend = Backend(args.backend or Backend.DISTSERVE.value)
    if backend is Backend.DISTSERVE:
        require(args, ("decode",), MODE)
    prefill = _parallel("prefill", args.prefill)
    decode = _parallel("decode", args.decode) if backend is Backend.DISTSERVE else prefill
    model = read_profile(args.profile, args.model)
    instance = resolve(model, backend, prefill, decode, ("--prefill", "--decode"))
    check_files(args)
    requests = read_requests(args.requests)
    from placement.compat.distserve.simulate import simulate  # compiled: numba takes a while to import

    timings = simulate(instance, requests, args.rate_scale or 1.0)
    columns = {"ttft_s": timings.ttft_s, "tpot_s": timings.tpot_s, "e2e_s": timings.e2e_s}
    write_output(args.output, json_lines(requests, columns))
    print("\n".join([f"{len(requests)} requests to {args.output}", *percentiles(columns)]))
    if backend is Backend.VLLM and args.decode is not None:
        print("--decode was not used: with --backend vllm one instance, --prefill, does both")
    return ExitCode.OK


def _parallel(name: str, text: str) -> Parallel:
    values = pairs(name, text, PARALLEL)
    return Parallel(*(pair_count(name, key, values[key]) for key in ("tp", "pp")))


def run_plan(args: argparse.Namespace) -> int:
    """Every placement; returns the exit code, which is 1 when none can hold the model."""
    require(args, ("profile", "model", "requests", "output", *PLAN), MODE)
    backend, affinity = Backend(args.backend or Backend.DISTSERVE.value), Affinity(args.affinity)
    model = read_profile(args.profile, args.model)
    if backend is Backend.VLLM:
        configurations = enumerate_colocated(model, backend.value, args.nodes * args.gpus_per_node)
    else:
        configurations = enumerate_configurations(model, backend.value, args.nodes, args.gpus_per_node, affinity)
    check_files(args)
    requests = read_requests(args.requests)
    from placement.compat.distserve.search import search  # compiled

    slo, bisection = Slo(args.slo_ttft, args.slo_tpot), Bisection(args.max_rate_per_gpu, args.resolution)
    table = list(search(model, backend, configurations, requests, slo, bisection))
    write_output(args.output, _table_json(table))
    print("\n".join([f"{len(table)} placements to {args.output}", _best_line(table)]))
    return ExitCode.OK if table else ExitCode.FAILED


def _table_json(table: Sequence[Goodput]) -> str:
    rows = [
        {
            "pp_cross": row.configuration.pp_cross,
            "prefill": {"tp": row.configuration.prefill.tp, "pp": row.configuration.prefill.pp},
            "decode": {"tp": row.configuration.decode.tp, "pp": row.configuration.decode.pp},
            "gpus": row.configuration.gpus,
            "goodput_per_gpu": row.per_gpu,
        }
        for row in table
    ]
    return json.dumps(rows, indent=1) + "\n"


def _best_line(table: Sequence[Goodput]) -> str:
    best = best_of(table)
    if best is None:
        return "no placement of these GPUs can hold the model"
    one = best.configuration
    where = f"pp_cross={one.pp_cross}, prefill {one.prefill}" + ("" if one.colocated else f", decode {one.decode}")
    return f"best: {where}: {best.per_gpu:g} requests/s per GPU on {one.gpus} GPUs"
