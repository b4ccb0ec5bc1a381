"""Sums of a stretch of time as the page wants them: one object a class, and short rows for the charts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdserve.slo import Blame
from router.dashboard.entries import rounded, rounded_values
from router.dashboard.sketch import Counts, quantiles
from router.dashboard.windows import BLAME_AT, OUTCOME_AT, Count, Latency, Span
from router.record import Outcome

_SHARES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_POINT_SHARES = (0.5, 0.95, 0.99)

COLUMNS = (
    "requests", "judged", "good", *(blame.value for blame in Blame),
    "ttft_p50", "ttft_p95", "ttft_p99", "tpot_p50", "tpot_p95", "tpot_p99",
)  # fmt: skip
"""Of a point: requests ended, judged, good, misses by blame, and percentiles in seconds."""


def summary_of(span: Span) -> dict[str, Any]:
    """All classes together, then each."""
    total = _one(span.seconds, span.counts.sum(axis=0), span.latencies.sum(axis=0, dtype=np.uint32))
    each = [
        _one(span.seconds, counts, latencies)
        for counts, latencies in zip(span.counts, span.latencies, strict=True)
    ]  # fmt: skip
    return {"seconds": rounded(span.seconds), "all": total, "classes": each}


def point_of(span: Span) -> list[Any] | None:
    """Rows as `COLUMNS` says: all classes together first, then each; None when nothing ended."""
    if not span.counts.any():
        return None
    total = _row(span.counts.sum(axis=0), span.latencies.sum(axis=0, dtype=np.uint32))
    if len(span.counts) == 1:
        return [total]
    return [total, *(_row(*one) for one in zip(span.counts, span.latencies, strict=True))]


def _one(seconds: float, counts: NDArray[np.int64], latencies: Counts) -> dict[str, Any]:
    ended = _ended(counts)
    judged = int(counts[Count.JUDGED])
    return {
        "requests": ended,
        "requests_per_s": rounded(ended / seconds),
        "judged": judged,
        "good": int(counts[Count.GOOD]),
        "goodput_rps": rounded(int(counts[Count.GOOD]) / seconds),
        "attainment": _share(counts[Count.GOOD], judged),
        "met_ttft": _share(counts[Count.MET_TTFT], judged),
        "met_tpot": _share(counts[Count.MET_TPOT], judged),
        "blame": {blame.value: int(counts[at]) for blame, at in BLAME_AT.items()},
        "outcomes": {outcome.value: int(counts[at]) for outcome, at in OUTCOME_AT.items()},
        "prompt_tokens": int(counts[Count.PROMPT_TOKENS]),
        "cached_tokens": int(counts[Count.CACHED_TOKENS]),
        "completion_tokens": int(counts[Count.COMPLETION_TOKENS]),
        "ttft_s": _percentiles(latencies[Latency.TTFT]),
        "tpot_s": _percentiles(latencies[Latency.TPOT]),
    }


def _row(counts: NDArray[np.int64], latencies: Counts) -> list[float | None]:
    row: list[float | None] = [_ended(counts), int(counts[Count.JUDGED]), int(counts[Count.GOOD])]
    row += [int(counts[at]) for at in BLAME_AT.values()]
    for latency in Latency:
        row += [rounded(value, 3) for value in quantiles(latencies[latency], _POINT_SHARES)]
    return row


def _percentiles(latencies: Counts) -> dict[str, float | None]:
    return rounded_values(dict(zip(_SHARES, quantiles(latencies, tuple(_SHARES.values())), strict=True)))


def _ended(counts: NDArray[np.int64]) -> int:
    return int(sum(counts[OUTCOME_AT[outcome]] for outcome in Outcome))


def _share(part: np.int64, whole: int) -> float | None:
    return round(int(part) / whole, 5) if whole else None
