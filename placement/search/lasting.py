"""Whether a goodput lasts: near the most that a placement serves it comes to rest slower than a run that decides is.

With requests of constant lengths TPOT creeps up for tens of stays before it is above its target. So the answer alone is
run for that long, by other requests; where it does not last, the rate goes down until it does.
"""

from __future__ import annotations

from dataclasses import replace

from placement.search.bounds import Slo
from placement.search.bracket import LONGEST, Attainment, Verdict, interval
from placement.search.goodput import Effort, Goodput, look_shortly
from placement.search.steady import Run, longest_stay_s
from placement.simulator.results import SimulationResult

SEED = 7919  # is added to the question's: other requests
_STAYS = 30.0
_AMPLE = 1.25  # in a longer run some are seen to stay longer
_RESTLESS = 0.08  # half of a confidence interval: it rises and falls for as long as the run is
_MOST_TIMES = 4  # so many times as long is a run made for that
_TIMES = 1.5  # as many requests as the longest run that decided
_LOOKS = 8
_WIDE = 1.5  # times the tolerance: as near as the rate is found
_LEAST = 0.5  # of the rate: it is not looked for below


def last(run: Run, rate: float, slo: Slo, effort: Effort, known: Goodput) -> tuple[Attainment, SimulationResult]:
    """One rate, for long; `known`: from shorter runs. Bad only where it is by more than two seeds differ."""
    num = int(_TIMES * max((one.num_requests for one in known.probes), default=effort.min_requests))
    most = min(_MOST_TIMES * num, LONGEST)
    while True:
        one = replace(effort, min_requests=num, max_requests=num, stays=0.0)
        found, result = look_shortly(run, rate, slo, one)
        needed = int(_STAYS * longest_stay_s(result.requests) * rate)
        if not result.complete:
            break
        if num < min(needed, LONGEST):
            num = min(int(_AMPLE * needed), LONGEST)
        elif found.half_width > _RESTLESS and num < most:
            num = min(2 * num, most)
        else:
            break
    if found.verdict is Verdict.BAD and result.complete and not found.clearly_bad(slo.attainment):
        found = replace(found, verdict=Verdict.GOOD)
    return found, result


def lasting(run: Run, slo: Slo, goodput: Goodput, upper: float, effort: Effort) -> Goodput:
    """The highest rate up to the one that was found which lasts; `run`: of other requests."""
    tolerance = effort.tolerance
    probes: list[Attainment] = []
    low, high, rate = 0.0, goodput.rate, goodput.rate
    at_rate: SimulationResult | None = None
    beyond: SimulationResult | None = None
    for _ in range(_LOOKS):
        found, result = last(run, rate, slo, effort, goodput)
        probes.append(found)
        if found.verdict is Verdict.GOOD:
            low, at_rate = rate, result
        else:
            high, beyond = rate, result
        if low == high or (low > 0.0 and high - low <= _WIDE * tolerance * high):
            break
        rate = (low + high) / 2 if low > 0.0 else goodput.rate * (1.0 - tolerance * 2.0 ** (len(probes) - 1))
        if rate < _LEAST * goodput.rate:
            break
    known = (*goodput.probes, *probes)
    sure_low, sure_high = interval(known, slo.attainment, low, upper)
    return Goodput(low, sure_low, sure_high, known, at_rate, beyond)
