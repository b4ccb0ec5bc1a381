"""`pdserve doctor`: checks this machine and measures every prefill-decode link, or looks at a running cluster."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from deploy.arguments import api_key, check_output
from deploy.doctor.finding import Finding, Status, as_json, table, worst
from deploy.doctor.gpus import AREA as GPUS
from deploy.doctor.gpus import check_gpus
from deploy.doctor.judge import judge_links
from deploy.doctor.links import LinkPlan, measure_links
from deploy.doctor.live import Expected, Scrape, judge_cluster, live_links, scrape
from deploy.doctor.machine import Wanted, check_machine, check_ports
from deploy.doctor.software import check_software
from deploy.doctor.surroundings import check_model, check_ray
from deploy.ready_file import ReadyInfo, read_ready_file
from pdserve.config import RouterConfig
from pdserve.exit import ExitCode, StartError
from pdserve.settings import ConfigError, address_problems

MAX_WORKERS = 64  # of each role: a probe is a process with a pool
TRANSPORTS = ("auto", "shm", "gloo", "cuda_ipc", "nccl", "staged")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is going to be started here, or what runs already."""
    wanted = parser.add_argument_group("a cluster to be started here")
    wanted.add_argument("--prefill", type=int, metavar="N", help="prefill workers (default: 1, or as run)")
    wanted.add_argument("--decode", type=int, metavar="N", help="decode workers (default: 1, or as run)")
    wanted.add_argument("--kv-transport", default="auto", choices=TRANSPORTS, help="default: %(default)s")
    wanted.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: %(default)s")
    wanted.add_argument("--model", metavar="MODEL", help="directory or hub id of a checkpoint: can it be served?")
    wanted.add_argument("--grpc", default=RouterConfig().grpc, metavar="HOST:PORT", help="default: %(default)s")
    wanted.add_argument("--http", default=RouterConfig().http, metavar="HOST:PORT", help="default: %(default)s")
    wanted.add_argument("--ray", nargs="?", const="local", metavar="ADDRESS", help="started through Ray")
    wanted.add_argument(
        "--links", action=argparse.BooleanOptionalAction, default=True, help="measure every link (default: on)"
    )
    running = parser.add_argument_group("a cluster that runs")
    running.add_argument("--server", metavar="URL", help="its HTTP address: [http://]HOST:PORT")
    running.add_argument("--api-key", type=api_key, default=os.environ.get("PDSERVE_API_KEY"), help="that it asks for")
    running.add_argument("--ready-file", type=Path, metavar="F", help="that it wrote")
    parser.add_argument("--json", type=Path, metavar="F", help="the findings and figures, for programs")


def run(args: argparse.Namespace) -> int:
    """Print the table; 0 when nothing failed."""
    _check_arguments(args)
    if args.json is not None:
        check_output(args.json, "--json")
    ready = None if args.ready_file is None else read_ready_file(args.ready_file)
    server = _server(args, ready)
    seen = None if server is None else scrape(server, args.api_key)
    wanted = _wanted(args, ready, seen)
    extras = [*(["ray"] if args.ray is not None else []), *(["gpu"] if args.device == "cuda" else [])]
    findings = [*check_software(extras), *check_machine(wanted), *check_gpus(args.device == "cuda")]
    if args.model is not None:
        findings += check_model(args.model, wanted, args.device == "cpu")
    if args.ray is not None:
        findings.append(check_ray(args.ray))
    links: Sequence[object] = []
    if seen is not None:
        live = live_links(seen)
        findings += judge_cluster(seen, live, _expected(args, ready))
        links = live
    else:
        findings += check_ports(args.grpc, args.http)
        if args.links and wanted.prefill and _can_start(findings):
            figures = asyncio.run(measure_links(_plan(args, wanted)))
            findings += judge_links(figures)
            links = figures
    print(table(findings))
    _write_json(args.json, findings, links)
    return ExitCode.FAILED if worst(findings) is Status.FAIL else ExitCode.OK


def _can_start(findings: Sequence[Finding]) -> bool:
    """Without the GPUs that were asked for there is nothing to measure, and the findings say so."""
    return not any(one.area == GPUS and one.status is Status.FAIL for one in findings)


def _check_arguments(args: argparse.Namespace) -> None:
    problems = [p for flag, at in (("--grpc", args.grpc), ("--http", args.http)) for p in address_problems(flag, at)]
    if args.prefill is not None and not 0 <= args.prefill <= MAX_WORKERS:
        problems.append(f"--prefill is {args.prefill}; it must be from 0 to {MAX_WORKERS}")
    if args.decode is not None and not 1 <= args.decode <= MAX_WORKERS:
        problems.append(f"--decode is {args.decode}; it must be from 1 to {MAX_WORKERS}")
    on_gpu = args.kv_transport in ("cuda_ipc", "nccl", "staged")
    if args.kv_transport != "auto" and on_gpu != (args.device == "cuda"):
        allowed = "auto, cuda_ipc, nccl, staged" if args.device == "cuda" else "auto, shm, gloo"
        problems.append(f"--kv-transport is {args.kv_transport}; --device {args.device} has {allowed}")
    if args.server is not None and args.ready_file is not None:
        problems.append("--server and --ready-file are both given; one names the cluster")
    if args.server is not None:
        address = _plain(args.server)
        if "/" in address or address_problems("--server", address):
            problems.append(f"--server is {args.server!r}; it must be HOST:PORT or http://HOST:PORT")
    if problems:
        raise ConfigError(problems)


def _plain(server: str) -> str:
    return server.removeprefix("http://").removesuffix("/")


def _wanted(args: argparse.Namespace, ready: ReadyInfo | None, seen: Scrape | None) -> Wanted:
    """The workers of the cluster that runs, or those that the flags want."""
    needs_dev_shm = args.ray is not None or args.device == "cuda"
    if seen is None:
        prefill, decode = (1 if count is None else count for count in (args.prefill, args.decode))
        return Wanted(prefill, decode, needs_dev_shm=needs_dev_shm)
    if ready is not None:
        prefill, decode = (sum(one.role == role for one in ready.workers) for role in ("prefill", "decode"))
    else:
        prefill, decode = len(seen.up("prefill")), len(seen.up("decode"))
    return Wanted(prefill, decode, runs=True, needs_dev_shm=needs_dev_shm)


def _expected(args: argparse.Namespace, ready: ReadyInfo | None) -> Expected:
    counts = {"prefill": args.prefill, "decode": args.decode}
    ids = [] if ready is None else [one.id for one in ready.workers]
    return Expected(ids, {role: count for role, count in counts.items() if count is not None})


def _server(args: argparse.Namespace, ready: ReadyInfo | None) -> str | None:
    if ready is None:
        return None if args.server is None else _plain(args.server)
    if ready.http is None:
        raise ConfigError([f"--ready-file is {args.ready_file}; that cluster has no HTTP door to ask"])
    return ready.http


def _plan(args: argparse.Namespace, wanted: Wanted) -> LinkPlan:
    devices: tuple[str, ...] = ()
    if args.device == "cuda":
        from deploy.gpus import find_gpus, spread, usable_gpus

        cards = spread(wanted.prefill, wanted.decode, len(usable_gpus(find_gpus())))
        devices = tuple(f"cuda:{card}" for card in cards)
    return LinkPlan(wanted.prefill, wanted.decode, args.kv_transport, devices)


def _write_json(path: Path | None, findings: Sequence[Finding], links: Sequence[object]) -> None:
    if path is None:
        return
    try:
        path.write_text(as_json(findings, links), encoding="utf-8")
    except OSError as error:
        raise StartError(f"--json is {path}; {error.strerror}", ExitCode.OUTPUT) from None
