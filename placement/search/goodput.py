"""Steady goodput: the highest rate at which the stated share of requests meets both SLOs, with confidence.

A run is long against how long its requests stay, and its beginning is cut off, so that what is judged is steady.
Requests of one run are not independent, so the confidence is that of batch means (Law and Kelton, Simulation Modeling
and Analysis, section 9.5.3). A rate that is more than a saturated cluster serves is unstable, whatever its attainment
was: 300 requests on 32 GPUs are five seconds of traffic, in which a queue that grows without end has not been noticed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from placement.search.bounds import Slo
from placement.search.bracket import GROW, LONGEST, Attainment, Bracket, Verdict, interval, requests_for
from placement.search.steady import NUM_BATCHES, Run, Saturation, first_steady, growth_of, longest_stay_s
from placement.simulator.give_up import GiveUp
from placement.simulator.results import SimulationResult

COARSE = 0.12  # of the rate: as narrow as the shortest runs make a bracket
_FEW_STAYS = 3.0
_LIKELY = 0.75  # of a bound
_AMPLE = 1.25
WARM_UP = 0.2  # of the requests, at least
_T = 2.09  # 95 % two-sided, 19 degrees of freedom
_HOPELESS = 0.2  # below the target: a share that no confidence interval reaches from


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard to look."""

    min_requests: int = 600
    max_requests: int = 9600  # more only where that is shorter than requests stay
    min_seconds: float = 60.0  # of traffic
    tolerance: float = 0.02  # of the rate
    max_probes: int = 14
    stays: float = 6.0  # a run's traffic is so many times as long as its requests stay
    whole: int = 0  # requests of a run that decides: as many, or a multiple; 0: any number

    @property
    def shortest(self) -> Effort:
        """To find about where to look."""
        return replace(self, max_requests=self.min_requests, tolerance=COARSE, stays=_FEW_STAYS, whole=0)

    def over(self, trace: int) -> Effort:
        """To judge by all requests of a trace, not by its first: what is judged of a run is as long as that."""
        return replace(self, whole=math.ceil(trace / (1.0 - WARM_UP)))

    def rounded(self, num: int) -> int:
        """Up to what a run may have."""
        return math.ceil(num / self.whole) * self.whole if self.whole else num

    def shorter(self, upper: float) -> tuple[Effort, ...]:
        """The shortest, and one between. None where so few requests would be seconds of traffic."""
        if self.min_seconds * _LIKELY * upper > GROW * self.min_requests:
            return ()
        between = replace(self, max_requests=GROW * self.min_requests, tolerance=2.5 * self.tolerance, whole=0)
        return tuple(one for one in (self.shortest, between) if one.max_requests < self.max_requests)


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


def saturation_of(run: Run, effort: Effort) -> Saturation:
    """To be shared by all looks at one placement."""
    return Saturation(run, effort.max_requests, effort.stays)


def look(
    run: Run, rate: float, slo: Slo, effort: Effort, likely: int = 0, saturation: Saturation | None = None
) -> tuple[Attainment, SimulationResult]:
    """Attainment at one rate, and whether the placement keeps up with it.

    `likely`: requests that it will take, as far as is known.
    """
    found, result = look_shortly(run, rate, slo, effort, likely)
    if found.verdict is not Verdict.GOOD:
        return found, result
    saturation = saturation or saturation_of(run, effort)
    if not saturation.known:
        growth = growth_of(result.requests, first_steady(result.requests, WARM_UP))
        if not growth.maybe_above(effort.tolerance):
            return found, result
    served = saturation.served(rate, found.num_requests)
    if served < rate:
        found = replace(found, verdict=Verdict.UNSTABLE, growth=1.0 - served / rate)
    return found, result


def look_shortly(
    run: Run, rate: float, slo: Slo, effort: Effort, likely: int = 0
) -> tuple[Attainment, SimulationResult]:
    """Attainment alone, perhaps by chance: more requests until the target is outside of the confidence interval, or
    enough is.

    A run whose requests stay long is made longer.
    """
    num = int(max(effort.min_requests, min(effort.max_requests, max(likely, effort.min_seconds * rate))))
    while True:
        num = effort.rounded(num)
        first = int(WARM_UP * num)
        share = max(slo.attainment - _HOPELESS, 0.5 * slo.attainment)
        result = run(rate, num, GiveUp(slo.ttft_s, slo.tpot_s, first, int((1.0 - share) * (num - first))))
        if not result.complete:
            return Attainment(rate, share, 0.0, num, Verdict.BAD), result
        found = _judge(result, rate, slo)
        distance = abs(found.share - slo.attainment)
        undecided = distance < found.half_width
        needed = int(effort.stays * longest_stay_s(result.requests) * rate)
        if num >= max(effort.max_requests, min(needed, LONGEST)) or (num >= needed and not undecided):
            return found, result
        ample = int(_AMPLE * needed)  # in a longer run some are seen to stay longer
        more = max(2 * num, min(requests_for(found, distance), GROW * num)) if undecided else 0
        num = min(max(more, ample), max(effort.max_requests, min(ample, LONGEST)))


def _judge(result: SimulationResult, rate: float, slo: Slo) -> Attainment:
    """By the share that meets both targets."""
    columns = result.requests
    met = columns.met(slo.ttft_s, slo.tpot_s)
    kept = met[first_steady(columns, WARM_UP) :].astype(float)
    means = np.array([batch.mean() for batch in np.array_split(kept, NUM_BATCHES)])
    half_width = _T * float(means.std(ddof=1)) / math.sqrt(NUM_BATCHES)
    share = float(kept.mean())
    verdict = Verdict.GOOD if share >= slo.attainment else Verdict.BAD
    return Attainment(rate, share, half_width, len(met), verdict)


def find_goodput(
    run: Run,
    slo: Slo,
    upper: float,
    effort: Effort,
    *,
    worth: Callable[[float], bool] = lambda rate: True,
    hints: Sequence[Attainment] = (),
    saturation: Saturation | None = None,
) -> Goodput:
    """Narrow a bracket below `upper` (a bound nothing can exceed); gives up once `worth(best possible rate)` is false.

    First by short runs, but for the shortest where those are the `hints`; longer ones begin with what these told, and
    only the longest decide.
    """
    hints = tuple(hints)
    for shorter in effort.shorter(upper)[1 if hints else 0 :]:
        if any(2 * hint.num_requests > shorter.max_requests for hint in hints):
            continue  # requests stay so long that the shortest runs were as long
        bracket = Bracket(upper, slo.attainment, shorter.tolerance, hints)
        while len(bracket.probes) < effort.max_probes and not bracket.settled:
            rate = bracket.next_rate()
            found, result = look_shortly(run, rate, slo, shorter, bracket.requests_for(rate))
            bracket.enter(found)
            if found.surely_bad(slo.attainment) and not worth(rate):
                return Goodput(0.0, 0.0, rate, (*hints, *bracket.probes), None, result)
        hints = (*hints, *bracket.probes)
    saturation = saturation or saturation_of(run, effort)
    bracket = Bracket(upper, slo.attainment, effort.tolerance, hints)
    good: SimulationResult | None = None
    bad: SimulationResult | None = None
    while len(bracket.probes) < effort.max_probes and not bracket.closed and worth(bracket.high_rate):
        rate = bracket.next_rate()
        found, result = look(run, rate, slo, effort, bracket.requests_for(rate), saturation)
        bracket.enter(found)
        if found.verdict is Verdict.GOOD:
            good = result
        else:
            bad = result
    probes = (*hints, *bracket.probes)
    sure_low, sure_high = interval(probes, slo.attainment, bracket.low_rate, upper)
    return Goodput(bracket.low_rate, sure_low, sure_high, probes, good, bad)


def confirm(run: Run, slo: Slo, goodput: Goodput, upper: float, effort: Effort) -> Goodput:
    """Both ends of the confidence interval, by looking further and further away from the answer."""
    if goodput.rate <= 0.0:
        return goodput
    probes, saturation = list(goodput.probes), saturation_of(run, effort)
    for sign in (-1.0, 1.0):
        step = 2 * effort.tolerance
        for _ in range(4):
            low, high = interval(probes, slo.attainment, goodput.rate, upper)
            rate = goodput.rate * (1.0 + sign * step)
            if (sign < 0 and rate <= low) or (sign > 0 and rate >= high):
                break
            probes.append(look(run, rate, slo, effort, saturation=saturation)[0])
            step *= 2.0
    low, high = interval(probes, slo.attainment, goodput.rate, upper)
    return replace(goodput, low=low, high=high, probes=tuple(probes))
