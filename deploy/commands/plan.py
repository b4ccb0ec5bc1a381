"""`pdserve plan`: which placement serves the most requests within their targets."""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path

from deploy.arguments import above_zero, api_key, count, refuse
from deploy.planning.flags import ONLY_LIVE, PLAN, SHARED, add_plan
from deploy.tls_arguments import add_tls_arguments
from pdserve.settings import ConfigError

COMPAT = ("distserve",)
"""Each is a module of deploy/compat/ with a run_plan."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of all modes; each mode says which it needs."""
    parser.add_argument("--compat", choices=COMPAT, help="by another system's rules instead of pdserve's own")
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="F",
        help="measured step times (pdserve profile), JSON; without it: the GPU's data sheet",
    )
    parser.add_argument(
        "--model", metavar="NAME", help="a known model, a checkpoint directory; with --compat one of the profile's"
    )
    parser.add_argument("--backend", choices=("distserve", "vllm"), help="whose engine (default: distserve)")
    parser.add_argument(
        "--requests", type=Path, metavar="F",
        help="JSON lines of arrival_s (at one request per second), prompt_tokens, output_tokens",
    )  # fmt: skip
    parser.add_argument("--max-rate-per-gpu", type=above_zero, metavar="A", help="requests/s where the search begins")
    parser.add_argument("--resolution", type=above_zero, metavar="B", help="requests/s per GPU at which it ends")
    parser.add_argument("--nodes", type=count, metavar="N", help="machines")
    parser.add_argument("--gpus-per-node", type=count, metavar="G", help="GPUs in each")
    parser.add_argument("--affinity", choices=("low", "high"), help="low: KV moves within a node; high: anywhere")
    parser.add_argument("--slo-ttft", type=above_zero, metavar="S", help="seconds to the first token, for 90 %%")
    parser.add_argument("--slo-tpot", type=above_zero, metavar="S", help="seconds per token after it, for 90 %%")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="F", help="the plan; with --compat the table of placements"
    )
    add_plan(parser)
    _add_live(parser.add_argument_group("a running cluster"))


def _add_live(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--live", metavar="URL",
        help="plan for what this router serves now, with the workers it has: HOST:PORT or http[s]://HOST:PORT",
    )  # fmt: skip
    group.add_argument("--every", type=above_zero, metavar="S", help="again every S seconds, a line each, until Ctrl-C")
    group.add_argument("--api-key", type=api_key, metavar="KEY", help="the router's (default: PDSERVE_API_KEY)")
    add_tls_arguments(group)


def run(args: argparse.Namespace) -> int:
    """Hand over to the mode; returns the exit code."""
    if args.live is not None:
        refuse(args, ("compat",), "plan --live")
        if args.api_key is None:
            args.api_key = _key_of_environment()
        return int(importlib.import_module("deploy.planning.live").run_live(args))
    refuse(args, ONLY_LIVE, "plan without --live")
    if args.compat is None:
        if args.bounds:
            return int(importlib.import_module("deploy.planning.closed_form").run_bounds(args))
        return int(importlib.import_module("deploy.planning.plan").run_plan(args))
    refuse(args, (*SHARED, *PLAN), f"--compat {args.compat}")
    mode = importlib.import_module(f"deploy.compat.{args.compat}")
    return int(mode.run_plan(args))


def _key_of_environment() -> str | None:
    """Not the flag's default: without --live nothing looks at it, and the flag is refused. Errors: ConfigError."""
    key = os.environ.get("PDSERVE_API_KEY")
    try:
        return None if key is None else api_key(key)
    except argparse.ArgumentTypeError as error:
        raise ConfigError([f"PDSERVE_API_KEY is hidden; {error}"]) from None
