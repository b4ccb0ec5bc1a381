"""Splitwise's own file of measured runs, one a line, as the table of medians that its simulator makes of it."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from placement.compat.document import Node
from placement.compat.errors import ProfileError

SCHEMA = "pd-latency-table/1"
NAMES, COUNTS = ("model", "hardware"), ("tensor_parallel", "prompt_size", "batch_size")
TIMES = ("prompt_time", "token_time")  # ms

Key = tuple[str, str, int]  # model, gpu, tp


def read_measurements(path: Path) -> Node:
    """Medians over all runs with as many prompt tokens in a batch. Raises ProfileError, one line, naming the line."""
    runs: defaultdict[Key, defaultdict[int, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            missing = [name for name in (*NAMES, *COUNTS, *TIMES) if name not in (rows.fieldnames or ())]
            if missing:
                raise ProfileError(f"--profile is {path}: its first line has no column {missing[0]!r}")
            for row in rows:
                tp, prompt, batch = (_number(path, rows.line_num, row, name, whole=True) for name in COUNTS)
                times = [_number(path, rows.line_num, row, name) for name in TIMES]
                runs[row["model"], row["hardware"], int(tp)][int(prompt * batch)].append(times)
    except OSError as error:
        raise ProfileError(f"--profile is {path}: cannot be read: {error.strerror}") from None
    except (ValueError, csv.Error) as error:
        raise ProfileError(f"--profile is {path}: not CSV: {error}") from None
    return Node({"schema": SCHEMA, "curves": [_curve(key, points) for key, points in runs.items()]}, str(path))


def _curve(key: Key, points: dict[int, list[list[float]]]) -> dict[str, Any]:
    tokens = sorted(points)
    prompt_ms, token_ms = ([median(run[column] for run in points[one]) for one in tokens] for column in (0, 1))
    names = dict(zip(("model", "gpu", "tp"), key, strict=True))
    return {**names, "batch_tokens": tokens, "prompt_ms": prompt_ms, "token_ms": token_ms}


def _number(path: Path, line: int, row: dict[str, Any], name: str, whole: bool = False) -> float:
    """Above 0."""
    try:
        number = float(row[name])
    except (TypeError, ValueError):  # None: the line is short
        number = math.nan
    if not 0 < number < 1e9 or (whole and number % 1):
        allowed = "a whole number" if whole else "a number"
        raise ProfileError(f"{path}:{line}: {name} is {row[name]!r}; it must be {allowed} above 0")
    return number
