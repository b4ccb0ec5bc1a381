"""`pdserve plan`: which placement serves the most requests within their targets."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from deploy.compat.arguments import above_zero, count
from pdserve.settings import ConfigError

COMPAT = ("distserve",)
"""Each is a module of deploy/compat/ with a run_plan."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of all modes; each mode says which it needs."""
    parser.add_argument("--compat", choices=COMPAT, help="by whose rules")
    parser.add_argument("--profile", type=Path, metavar="F", help="latency coefficients, JSON")
    parser.add_argument("--model", metavar="NAME", help="one of the profile's models")
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
    parser.add_argument("-o", "--output", type=Path, metavar="F", help="the table: every placement with its goodput")


def run(args: argparse.Namespace) -> int:
    """Hand over to the mode; returns the exit code."""
    if args.compat is None:
        raise ConfigError([f"--compat is missing; it must be one of {', '.join(COMPAT)}"])
    mode = importlib.import_module(f"deploy.compat.{args.compat}")
    return int(mode.run_plan(args))
