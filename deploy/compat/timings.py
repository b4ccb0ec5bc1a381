"""Per-request results: a file of JSON lines, and two lines of percentiles for the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from placement.compat.requests import Floats, Requests


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
