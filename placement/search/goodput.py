"""Steady goodput: the highest rate at which the stated share of requests meets both SLOs, with confidence.

A run is cut at both ends (warm-up; arrivals whose end the run may not have seen are kept: all are served to their end).
Requests of one run are not independent, so the confidence is that of batch means (Law and Kelton, Simulation Modeling
and Analysis, section 9.5.3). A run whose delays still grow at its end is unstable, whatever its attainment was: 300
requests on 32 GPUs are five seconds of traffic, in which a queue that grows without end has not yet been noticed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np

from placement.search.bounds import Slo
from placement.simulator.results import RequestColumns

Run = Callable[[float, int], RequestColumns]
"""(rate, number of requests) -> what became of them; the same arguments give the same answer."""

_WARM_UP = 0.2
_BATCHES = 20
_T = 2.09  # 95 % two-sided, 19 degrees of freedom
_GROWTH = 1.5  # of the median TTFT from the first to the last third, beyond which a queue grows


class Verdict(Enum):
    """What a rate is."""

    GOOD = "good"
    BAD = "bad"
    UNSTABLE = "unstable"


@dataclass(frozen=True, slots=True)
class Attainment:
    """Of one rate: the share, its 95 % confidence half width, and what follows."""

    rate: float
    share: float
    half_width: float
    num_requests: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard to look."""

    min_requests: int = 600
    max_requests: int = 9600
    min_seconds: float = 60.0  # of traffic
    tolerance: float = 0.02  # of the rate
    max_probes: int = 14


@dataclass(frozen=True, slots=True)
class Goodput:
    """The answer for one candidate."""

    rate: float  # the highest rate seen to be good; 0: none
    low: float  # good with confidence up to here
    high: float  # bad with confidence from here on
    probes: tuple[Attainment, ...]
    at_rate: RequestColumns | None = None  # the run at `rate`


def look(run: Run, rate: float, slo: Slo, effort: Effort) -> tuple[Attainment, RequestColumns]:
    """Attainment at one rate; more requests until the target is outside of the confidence interval, or enough is."""
    num = int(max(effort.min_requests, min(effort.max_requests, effort.min_seconds * rate)))
    while True:
        columns = run(rate, num)
        found = _judge(columns, rate, slo)
        undecided = abs(found.share - slo.attainment) < found.half_width and found.verdict is not Verdict.UNSTABLE
        if not undecided or num >= effort.max_requests:
            return found, columns
        num = min(2 * num, effort.max_requests)


def _judge(columns: RequestColumns, rate: float, slo: Slo) -> Attainment:
    met = columns.met(slo.ttft_s, slo.tpot_s)
    kept = met[int(_WARM_UP * len(met)) :].astype(float)
    means = np.array([batch.mean() for batch in np.array_split(kept, _BATCHES)])
    half_width = _T * float(means.std(ddof=1)) / math.sqrt(_BATCHES)
    share = float(kept.mean())
    verdict = Verdict.GOOD if share >= slo.attainment else Verdict.BAD
    if verdict is Verdict.GOOD and _grows(columns, slo):
        verdict = Verdict.UNSTABLE
    return Attainment(rate, share, half_width, len(met), verdict)


def _grows(columns: RequestColumns, slo: Slo) -> bool:
    """Waiting increases from third to third, and is no longer small."""
    waits = np.nan_to_num(columns.ttft_s - columns.prefill_s, nan=slo.ttft_s)
    waits = waits + np.nan_to_num(columns.transfer_s + columns.decode_wait_s, nan=slo.ttft_s)
    first, second, third = (float(np.median(part)) for part in np.array_split(waits[int(_WARM_UP * len(waits)) :], 3))
    return third > _GROWTH * second > _GROWTH**2 * first and third > 0.1 * slo.ttft_s


def find_goodput(
    run: Run, slo: Slo, upper: float, effort: Effort, *, worth: Callable[[float], bool] = lambda rate: True
) -> Goodput:
    """Bisect below `upper` (a bound nothing can exceed); gives up once `worth(best possible rate)` is false."""
    probes: list[Attainment] = []
    best: tuple[float, RequestColumns | None] = (0.0, None)
    low, high = 0.0, upper
    sure_low, sure_high = 0.0, upper
    while len(probes) < effort.max_probes and high - low > effort.tolerance * high and worth(high):
        # The bound is optimistic: where nothing is known, three quarters of it is the likelier answer than a half.
        rate = 0.75 * high if low == 0.0 and not probes else (low + high) / 2
        found, columns = look(run, rate, slo, effort)
        probes.append(found)
        if found.verdict is Verdict.GOOD:
            low, best = rate, (rate, columns)
            if found.share - found.half_width >= slo.attainment:
                sure_low = max(sure_low, rate)
        else:
            high = rate
            if found.share + found.half_width < slo.attainment or found.verdict is Verdict.UNSTABLE:
                sure_high = min(sure_high, rate)
    return Goodput(best[0], sure_low, max(sure_high, best[0]), tuple(probes), best[1])
