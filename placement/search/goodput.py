"""Steady goodput: the highest rate at which the stated share of requests meets both SLOs, with confidence.

A run is long against how long its requests stay, and its beginning is cut off, so that what is judged is steady.
Requests of one run are not independent, so the confidence is that of batch means (Law and Kelton, Simulation Modeling
and Analysis, section 9.5.3). A run whose backlog still grows at its end is unstable, whatever its attainment was: 300
requests on 32 GPUs are five seconds of traffic, in which a queue that grows without end has not yet been noticed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from placement.search.bounds import Slo
from placement.search.steady import NUM_BATCHES, first_steady, growth_of, longest_stay_s
from placement.simulator.give_up import GiveUp
from placement.simulator.results import SimulationResult

Run = Callable[[float, int, GiveUp], SimulationResult]
"""(rate, number of requests, when to give up) -> what happened; the same arguments give the same answer."""

WARM_UP = 0.2  # of the requests, at least
_STAYS = 6.0  # a run's traffic is so many times as long as its requests stay
_LONGEST = 400_000  # requests that a run may have for their sake: at thousands a second it is minutes long
_T = 2.09  # 95 % two-sided, 19 degrees of freedom
_HOPELESS = 0.2  # below the target: a share that no confidence interval reaches from


class Verdict(Enum):
    """What a rate is."""

    GOOD = "good"
    BAD = "bad"
    UNSTABLE = "unstable"


@dataclass(frozen=True, slots=True)
class Attainment:
    """Of one rate: the share, its 95 % confidence half width, and what follows."""

    rate: float
    share: float  # of a run that was given up: at most
    half_width: float
    num_requests: int
    verdict: Verdict

    def surely_good(self, target: float) -> bool:
        """Not only by chance."""
        return self.verdict is Verdict.GOOD and self.share - self.half_width >= target

    def surely_bad(self, target: float) -> bool:
        """Not only by chance."""
        return self.verdict is Verdict.UNSTABLE or self.share + self.half_width < target


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard to look."""

    min_requests: int = 600
    max_requests: int = 9600  # more only where that is shorter than requests stay
    min_seconds: float = 60.0  # of traffic
    tolerance: float = 0.02  # of the rate
    max_probes: int = 14


@dataclass(frozen=True, slots=True)
class Goodput:
    """The answer for one candidate."""

    rate: float  # the highest rate seen to be good, or the one that was asked for; 0: none
    low: float  # good with confidence up to here
    high: float  # bad with confidence from here on
    probes: tuple[Attainment, ...]  # of a rate that was asked for: that one first
    at_rate: SimulationResult | None = None  # the run at `rate`
    beyond: SimulationResult | None = None  # the run at the lowest rate that is not good
    most: float | None = None  # the highest rate seen to be good, where another was asked for and carried


def look(run: Run, rate: float, slo: Slo, effort: Effort) -> tuple[Attainment, SimulationResult]:
    """Attainment at one rate; more requests until the target is outside of the confidence interval, or enough is.

    A run whose requests stay long is made longer, and so is one whose backlog may grow by more than the tolerance:
    only at the most requests is growth believed.
    """
    num = int(max(effort.min_requests, min(effort.max_requests, effort.min_seconds * rate)))
    while True:
        first = int(WARM_UP * num)
        share = max(slo.attainment - _HOPELESS, 0.5 * slo.attainment)
        result = run(rate, num, GiveUp(slo.ttft_s, slo.tpot_s, first, int((1.0 - share) * (num - first))))
        if not result.complete:
            return Attainment(rate, share, 0.0, num, Verdict.BAD), result
        found, undecided = _judge(result, rate, slo, effort.tolerance)
        needed = int(_STAYS * longest_stay_s(result.requests) * rate)
        most = max(effort.max_requests, min(needed, _LONGEST))
        if num >= most or (num >= needed and not undecided):
            return found, result
        num = min(max(2 * num, needed), most)


def _judge(result: SimulationResult, rate: float, slo: Slo, tolerance: float) -> tuple[Attainment, bool]:
    """The judgement, and whether more requests may change it."""
    columns = result.requests
    met = columns.met(slo.ttft_s, slo.tpot_s)
    first = first_steady(columns, WARM_UP)
    kept = met[first:].astype(float)
    means = np.array([batch.mean() for batch in np.array_split(kept, NUM_BATCHES)])
    half_width = _T * float(means.std(ddof=1)) / math.sqrt(NUM_BATCHES)
    share = float(kept.mean())
    undecided = abs(share - slo.attainment) < half_width
    verdict = Verdict.GOOD if share >= slo.attainment else Verdict.BAD
    if verdict is Verdict.GOOD:
        growth = growth_of(columns, first)
        verdict = Verdict.UNSTABLE if growth.surely_above(tolerance / 2) else verdict
        undecided = undecided or growth.maybe_above(tolerance)
    return Attainment(rate, share, half_width, len(met), verdict), undecided or verdict is Verdict.UNSTABLE


def find_goodput(
    run: Run, slo: Slo, upper: float, effort: Effort, *, worth: Callable[[float], bool] = lambda rate: True
) -> Goodput:
    """Bisect below `upper` (a bound nothing can exceed); gives up once `worth(best possible rate)` is false."""
    probes: list[Attainment] = []
    good: SimulationResult | None = None
    bad: SimulationResult | None = None
    low, high = 0.0, upper
    while len(probes) < effort.max_probes and high - low > effort.tolerance * high and worth(high):
        # The bound is optimistic: where nothing is known, three quarters of it is the likelier answer than a half.
        rate = 0.75 * high if low == 0.0 and not probes else (low + high) / 2
        found, result = look(run, rate, slo, effort)
        probes.append(found)
        if found.verdict is Verdict.GOOD:
            low, good = rate, result
        else:
            high, bad = rate, result
    sure_low, sure_high = interval(probes, slo.attainment, low, upper)
    return Goodput(low, sure_low, sure_high, tuple(probes), good, bad)


def confirm(run: Run, slo: Slo, goodput: Goodput, upper: float, effort: Effort) -> Goodput:
    """Both ends of the confidence interval, by looking further and further away from the answer."""
    if goodput.rate <= 0.0:
        return goodput
    probes = list(goodput.probes)
    for sign in (-1.0, 1.0):
        step = 2 * effort.tolerance
        for _ in range(4):
            low, high = interval(probes, slo.attainment, goodput.rate, upper)
            rate = goodput.rate * (1.0 + sign * step)
            if (sign < 0 and rate <= low) or (sign > 0 and rate >= high):
                break
            probes.append(look(run, rate, slo, effort)[0])
            step *= 2.0
    low, high = interval(probes, slo.attainment, goodput.rate, upper)
    return replace(goodput, low=low, high=high, probes=tuple(probes))


def interval(probes: list[Attainment], target: float, rate: float, upper: float) -> tuple[float, float]:
    """The highest rate up to `rate` that is surely good, and the lowest above it that is surely bad."""
    good = [probe.rate for probe in probes if probe.rate <= rate and probe.surely_good(target)]
    bad = [probe.rate for probe in probes if probe.rate > rate and probe.surely_bad(target)]
    return max(good, default=0.0), min(bad, default=max(upper, rate))
