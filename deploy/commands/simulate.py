"""`pdserve simulate`: requests through one placement, under a virtual clock."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from deploy.compat.arguments import above_zero
from pdserve.settings import ConfigError

COMPAT = ("distserve", "splitwise")
"""Each is a module of deploy/compat/ with a run_simulate."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of all modes; each mode says which it needs."""
    parser.add_argument("--compat", choices=COMPAT, help="by whose rules")
    parser.add_argument("--profile", type=Path, metavar="F", help="latency coefficients or tables, JSON")
    parser.add_argument("--model", metavar="NAME", help="one of the profile's models")
    parser.add_argument("--backend", choices=("distserve", "vllm"), help="distserve's engine (default: distserve)")
    parser.add_argument(
        "--prefill", metavar="K=V,...", help="distserve: tp=N,pp=N; splitwise: gpu=NAME,tp=N,machines=N"
    )
    parser.add_argument("--decode", metavar="K=V,...", help="the same for decode; not with --backend vllm")
    parser.add_argument(
        "--requests", type=Path, metavar="F", help="JSON lines of arrival_s, prompt_tokens, output_tokens"
    )
    parser.add_argument("--rate-scale", type=above_zero, metavar="X", help="arrivals come X times as fast (default: 1)")
    parser.add_argument("-o", "--output", type=Path, metavar="F", help="JSON lines, one a request, in the same order")


def run(args: argparse.Namespace) -> int:
    """Hand over to the mode; returns the exit code."""
    if args.compat is None:
        raise ConfigError([f"--compat is missing; it must be one of {', '.join(COMPAT)}"])
    mode = importlib.import_module(f"deploy.compat.{args.compat}")
    return int(mode.run_simulate(args))
