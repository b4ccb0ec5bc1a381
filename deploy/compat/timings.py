"""Per-request results: where they go, a file of JSON lines, and lines of percentiles for the terminal."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping

import numpy as np

from deploy.arguments import check_output, flag
from pdserve.exit import ExitCode, StartError
from placement.compat.requests import Floats, Requests


def check_files(args: argparse.Namespace) -> None:
    """Before the work: the output can be a file, and is none of the inputs. Raises StartError, exit code 6."""
    check_output(args.output)
    for name in ("profile", "requests"):
        given = getattr(args, name)
        if os.path.isfile(given) and os.path.realpath(given) == os.path.realpath(args.output):
            raise StartError(f"--output is {args.output}; that is the file of {flag(name)}", ExitCode.OUTPUT)


def json_lines(requests: Requests, columns: Mapping[str, Floats]) -> str:
    """One object a request, in the order in which the requests were given."""
    given = [requests.as_given(column).tolist() for column in columns.values()]
    rows = zip(*given, strict=True)
    return "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)


def percentiles(columns: Mapping[str, Floats]) -> list[str]:
    """`TTFT p50 0.092  p90 0.142  p99 0.229 s` for each."""
    lines = []
    for name, column in columns.items():
        values = zip((50, 90, 99), np.percentile(column, (50, 90, 99)), strict=True)
        shown = "  ".join(f"p{share} {value:.4g}" for share, value in values)
        lines.append(f"{name.removesuffix('_s').upper():<5}{shown} s")
    return lines
