"""The flags of `pdserve bench`, and which of them go together."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from deploy.arguments import above_zero, api_key, check_report, whole
from deploy.commands.generate import DEFAULT_SERVER
from deploy.tls_arguments import add_tls_arguments
from pdserve.settings import ConfigError
from placement.workload import WorkloadSpec, parse_workload_spec


def _share(text: str) -> float:
    value = above_zero(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a share between 0 and 1, such as 0.9")
    return value


def _seconds(text: str) -> float:
    return 0.0 if text in ("0", "0.0") else above_zero(text)


def _rates(text: str) -> list[float]:
    return [above_zero(one) for one in text.split(",")]


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} must be a JSON object")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Server, workload, rate, targets, output."""
    _add_server(parser.add_argument_group("server"))
    _add_workload(parser.add_argument_group("workload"))
    _add_load(parser.add_argument_group("load"))
    _add_search(parser.add_argument_group("targets and search"))
    output = parser.add_argument_group("output")
    output.add_argument("--json", type=Path, metavar="F", help="results and every request, schema in docs/bench.md")
    output.add_argument("--report", type=Path, metavar="F", help="plots and text: F.html or F.png")


def _add_server(group: argparse._ArgumentGroup) -> None:
    server = os.environ.get("PDSERVE_SERVER", DEFAULT_SERVER)
    group.add_argument(
        "--server", default=server, metavar="URL",
        help="HOST:PORT or grpc[s]://HOST:PORT of pdserve, or http[s]://HOST[:PORT][/v1] of any OpenAI server "
        "(default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--compare", metavar="URL", help="a second server, under the same load in turn; prints ratios")
    group.add_argument("--rounds", type=whole(1), default=3, metavar="N", help="of --compare (default: %(default)s)")
    group.add_argument("--chat", action="store_true", help="chat completions instead of completions")
    group.add_argument("--model", default="", metavar="NAME", help="(default: what the server lists first)")
    group.add_argument("--vocab-size", type=whole(16), metavar="N",
                       help="token ids of prompts stay below (default: what pdserve says; 1024 over HTTP)")  # fmt: skip
    group.add_argument("--api-key", type=api_key, default=os.environ.get("PDSERVE_API_KEY"), help="the server's key")
    add_tls_arguments(group)
    group.add_argument(
        "--ignore-eos", action=argparse.BooleanOptionalAction, default=True,
        help="ask for exactly the workload's output lengths (ignore_eos, min_tokens)",
    )  # fmt: skip
    group.add_argument(
        "--extra-body", type=_object, default={}, metavar="JSON", help="more fields of each HTTP request"
    )


def _add_workload(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--workload", metavar="SPEC",
        help="trace file, azure-code, azure-conv, mooncake, or input=2000,output=100; more in docs/workloads.md",
    )  # fmt: skip
    group.add_argument("--trace", type=Path, metavar="F", help="the same as --workload F")
    group.add_argument("--input-len", metavar="TOKENS", help="or LOW..HIGH, or lognormal:MEAN:CV")
    group.add_argument("--output-len", metavar="TOKENS", help="likewise")
    group.add_argument("--arrivals", metavar="KIND", help="poisson, gamma (with --cv), constant or trace")
    group.add_argument("--cv", metavar="X", help="of the gaps between gamma arrivals: 1 is Poisson")
    group.add_argument("--max-total", metavar="TOKENS", help="requests with longer prompt and output are left out")


def _add_load(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--rate", type=above_zero, metavar="R", help="requests per second (default: the workload's own)")
    group.add_argument("--rates", type=_rates, metavar="R,R,...", help="several, one run each")
    group.add_argument("--num-requests", type=whole(1), metavar="N", help="of a run")
    group.add_argument("--duration", type=above_zero, metavar="S", help="of a run: requests that come in that time")
    group.add_argument("--warmup", type=whole(0), default=4, metavar="N",
                       help="requests before the first run, not counted (default: %(default)s)")  # fmt: skip
    group.add_argument("--skip", type=_seconds, default=0.0, metavar="S", help="of each run's begin, not counted")
    group.add_argument("--timeout", type=above_zero, default=600.0, metavar="S",
                       help="of a request, from when it was to be sent (default: %(default)g)")  # fmt: skip
    group.add_argument("--max-concurrency", type=whole(1), metavar="N",
                       help="open requests; waiting for a place counts as latency (default: no limit)")  # fmt: skip
    group.add_argument("--processes", type=whole(1, 256), metavar="N",
                       help="generator processes (default: as many as the rate needs)")  # fmt: skip
    group.add_argument(
        "--seed", type=whole(0), default=0, metavar="N", help="of arrivals and lengths (default: %(default)s)"
    )
    group.add_argument("--prompt-seed", type=whole(0), metavar="N",
                       help="of the prompts' tokens (default: drawn, so that none is cached yet)")  # fmt: skip


def _add_search(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--slo-ttft", type=above_zero, metavar="S", help="seconds to the first token")
    group.add_argument("--slo-tpot", type=above_zero, metavar="S", help="seconds per token after it")
    group.add_argument("--send-slo", action=argparse.BooleanOptionalAction, default=True,
                       help="tell our own server, which may reject what it cannot serve in time")  # fmt: skip
    group.add_argument("--find-goodput", action="store_true", help="search the highest rate that keeps --attainment")
    group.add_argument("--attainment", type=_share, default=0.9, metavar="X",
                       help="share of requests that must meet both (default: %(default)s)")  # fmt: skip
    group.add_argument("--resolution", type=_share, default=0.05, metavar="X",
                       help="of the rate found, relative (default: %(default)s)")  # fmt: skip
    group.add_argument("--confidence", type=_share, default=0.95, metavar="X",
                       help="with which a probe ends early (default: %(default)s)")  # fmt: skip
    group.add_argument("--min-probe-s", type=above_zero, default=30.0, metavar="S",
                       help="length of a probe that nothing decides earlier (default: %(default)g)")  # fmt: skip
    group.add_argument("--min-requests", type=whole(20), default=200, metavar="N",
                       help="and with so many requests at least (default: %(default)s)")  # fmt: skip
    group.add_argument("--gpus", type=whole(1), metavar="N", help="of the server: goodput is told per GPU too")


def check(args: argparse.Namespace) -> None:
    """What does not go together; raises ConfigError with all of it."""
    problems = []
    kinds = [
        args.workload is not None,
        args.trace is not None,
        args.input_len is not None or args.output_len is not None,
    ]
    if sum(kinds) != 1:
        problems.append("one of --workload, --trace, or --input-len with --output-len is needed, and only one")
    elif kinds[2] and (args.input_len is None or args.output_len is None):
        problems.append("--input-len and --output-len go together")
    if args.rate is not None and args.rates is not None:
        problems.append("--rate and --rates: only one of them can be given")
    if args.find_goodput and args.slo_ttft is None and args.slo_tpot is None:
        problems.append("--find-goodput needs --slo-ttft, --slo-tpot or both")
    if args.find_goodput and args.compare is not None:
        problems.append("--find-goodput and --compare: search each server by itself")
    if args.find_goodput and args.rates is not None:
        problems.append("--find-goodput and --rates: the search chooses the rates; --rate is where it begins")
    problems += check_report(args, "json")
    if problems:
        raise ConfigError(problems)


def workload_spec(args: argparse.Namespace) -> WorkloadSpec:
    """From whichever flags said it; raises ConfigError."""
    source = args.workload if args.workload is not None else str(args.trace)
    if args.input_len is not None:
        source = f"input={args.input_len},output={args.output_len}"
    flags = {"arrivals": args.arrivals, "cv": args.cv, "max-total": args.max_total}
    flag = "--workload" if args.workload is not None else "--trace" if args.trace is not None else "--input-len"
    text = source + "".join(f",{key}={value}" for key, value in flags.items() if value)
    return parse_workload_spec(text, flag, is_file=args.trace is not None)
