"""What events did to a run: between any two of them, and until when it is worse for them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deploy.words import counted
from placement.simulator.requests import Outcome
from placement.simulator.results import Change, Happened, RequestColumns, SimulationResult

_WINDOW = 100  # requests in a row that are looked at together
_FEWEST = 30
_SURE = 4.0  # standard errors that a window must miss more than without events; 3 come by chance in a long run
_WORDS = {Change.DIED: "dies", Change.STARTED: "is up again", Change.DRAINED: "takes no more requests"}


class Targets(NamedTuple):
    """What a request should meet; without one, inf."""

    ttft_s: float = math.inf
    tpot_s: float = math.inf


_NONE = Targets()


def disturbance(result: SimulationResult, calm: RequestColumns, targets: Targets) -> list[str]:
    """Lines to print. `calm`: the same requests without the events."""
    rows = result.requests
    lines = [f"  {_at(one.at_s)} s: {_words(one)}{_too_late(one, rows)}" for one in result.happened]
    if result.errors:
        reasons = [f"{num:,} ({error})" for error, num in result.errors.items()]
        lines.append(f"  not served, by reason: {', '.join(reasons)}; nothing is retried")
    return [*lines, *_table(result.happened, rows, calm, targets), f"  {_again(result.happened, rows, calm, targets)}"]


def _words(one: Happened) -> str:
    if one.change is Change.CHANGED:
        return f"{one.worker_id} is a {one.role.value} worker"
    also = f", to become a {one.role.value} worker" if one.change is Change.DRAINED else ""
    return f"{one.worker_id} {_WORDS[one.change]}{also}"


def _too_late(one: Happened, rows: RequestColumns) -> str:
    last_s = np.nanmax(rows.arrival_s + np.nan_to_num(rows.e2e_s))
    return "" if one.at_s <= last_s else ", after the last request"


def _at(seconds: float) -> str:
    return f"{seconds:,.1f}".removesuffix(".0")


# ---- between the events ----


def _table(happened: Iterable[Happened], rows: RequestColumns, calm: RequestColumns, targets: Targets) -> list[str]:
    """A line for all that arrived between two changes."""
    at_s = sorted({one.at_s for one in happened})
    borders = [-math.inf, *at_s, math.inf]
    table = [["by arrival", "requests", "not served", "within", "TTFT p50, p90", "TPOT p50, p90"]]
    for begin_s, end_s in pairwise(borders):
        arrived = (begin_s <= rows.arrival_s) & (rows.arrival_s < end_s)
        if arrived.any():
            table.append([_span(begin_s, end_s), *_cells(rows, arrived, targets)])
    table.append(["without events", *_cells(calm, np.ones(len(calm.arrival_s), bool), targets)])
    if targets == _NONE:
        table = [[*line[:3], *line[4:]] for line in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  " + "  ".join(map(str.ljust, line, widths)).rstrip() for line in table]


def _span(begin_s: float, end_s: float) -> str:
    if begin_s == -math.inf:
        return f"before {_at(end_s)} s"
    return f"from {_at(begin_s)} s" if end_s == math.inf else f"{_at(begin_s)} to {_at(end_s)} s"


def _cells(rows: RequestColumns, which: npt.NDArray[np.bool_], targets: Targets) -> list[str]:
    served = which & (rows.outcome == Outcome.FINISHED)
    within = 100 * float(np.mean(rows.met(*targets)[which]))
    times = [_percentiles(getattr(rows, name)[served]) for name in ("ttft_s", "tpot_s")]
    return [f"{int(which.sum()):,}", f"{int((which & ~served).sum()):,}", f"{within:.2f} %", *times]


def _percentiles(seconds: npt.NDArray[np.float64]) -> str:
    if not len(seconds):
        return "-"
    return ", ".join(f"{np.percentile(seconds, q):.4g} s" for q in (50, 90))


# ---- and after them ----


def _again(happened: tuple[Happened, ...], rows: RequestColumns, calm: RequestColumns, targets: Targets) -> str:
    """From when on it is as good as if nothing had happened."""
    first_s = happened[0].at_s
    since = rows.arrival_s >= first_s
    if (num := int(since.sum())) < _FEWEST:
        return f"{counted(num, 'request')} from {_at(first_s)} s on: too few to tell whether they are served worse"
    found_s = again_s(rows, calm, first_s, targets)
    if found_s is None:
        return f"no worse than without events from {_at(first_s)} s on"
    if found_s == math.inf:
        return f"worse than without events until the last arrival, at {_at(float(rows.arrival_s[-1]))} s"
    last = [one for one in happened if one.at_s <= found_s][-1]
    return f"no worse than without events from {_at(found_s)} s on, {_at(found_s - last.at_s)} s after {_words(last)}"


def again_s(rows: RequestColumns, calm: RequestColumns, first_s: float, targets: Targets) -> float | None:
    """The arrival from which on the rows are as good as the calm ones; None: they always are, inf: they never are.

    Looked at are a hundred requests in a row that arrive from `first_s` on. They are worse where significantly more
    of them miss a target, or without targets the calm run's P90 of TTFT or of TPOT.
    """
    since = rows.arrival_s >= first_s
    limits = targets if targets != _NONE else _usual(calm)
    missed, usual = (~one.met(*limits)[since] for one in (rows, calm))
    size = min(_WINDOW, len(missed))
    share, usual_share = (_moving_mean(one, size) for one in (missed, usual))
    error = np.sqrt((share * (1.0 - share) + usual_share * (1.0 - usual_share)) / size)
    worse = np.flatnonzero(share - usual_share > _SURE * error)
    if not len(worse):
        return None
    window = slice(worse[-1], worse[-1] + size)
    after = int(np.flatnonzero(missed[window])[-1] + worse[-1]) + 1
    return float(rows.arrival_s[since][after]) if window.stop < len(missed) else math.inf


def _usual(calm: RequestColumns) -> Targets:
    served = calm.outcome == Outcome.FINISHED
    if not served.any():
        return _NONE
    return Targets(*(float(np.percentile(one[served], 90)) for one in (calm.ttft_s, calm.tpot_s)))


def _moving_mean(flags: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.float64]:
    mean: npt.NDArray[np.float64] = np.lib.stride_tricks.sliding_window_view(flags, size).mean(axis=1)
    return mean
