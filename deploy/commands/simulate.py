"""`pdserve simulate`: requests through one placement, under a virtual clock."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from deploy.arguments import above_zero, refuse
from deploy.planning.flags import SHARED, SIMULATE, add_simulate

COMPAT = ("distserve", "splitwise")
"""Each is a module of deploy/compat/ with a run_simulate."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of all modes; each mode says which it needs."""
    parser.add_argument("--compat", choices=COMPAT, help="by another system's rules instead of pdserve's own")
    parser.add_argument("--profile", type=Path, metavar="F", help="latency coefficients or tables, JSON")
    parser.add_argument(
        "--model", metavar="NAME", help="a known model, a checkpoint directory; with --compat one of the profile's"
    )
    parser.add_argument("--backend", choices=("distserve", "vllm"), help="distserve's engine (default: distserve)")
    parser.add_argument(
        "--prefill",
        metavar="K=V,...",
        help="workers=N,tp=N,pp=N,gpu=TYPE or N alone; 0, or left out: colocated, decode workers compute prompts; "
        "distserve: tp=N,pp=N; splitwise: gpu=NAME,tp=N,machines=N",
    )
    parser.add_argument("--decode", metavar="K=V,...", help="the same for decode; --backend vllm has no use for it")
    parser.add_argument(
        "--requests", type=Path, metavar="F", help="JSON lines of arrival_s, prompt_tokens, output_tokens"
    )
    parser.add_argument("--rate-scale", type=above_zero, metavar="X", help="arrivals come X times as fast (default: 1)")
    parser.add_argument("-o", "--output", type=Path, metavar="F", help="JSON lines, one a request, in the same order")
    add_simulate(parser)


def run(args: argparse.Namespace) -> int:
    """Hand over to the mode; returns the exit code."""
    if args.compat is None:
        return importlib.import_module("deploy.planning.simulate").run_simulate(args)  # type: ignore[no-any-return]
    refuse(args, (*SHARED, *SIMULATE), f"--compat {args.compat}")
    mode = importlib.import_module(f"deploy.compat.{args.compat}")
    return int(mode.run_simulate(args))
