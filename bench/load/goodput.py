"""The search for the highest rate at which the stated share of requests meets its SLO: pure, so that it can be tested.

Two parts. `Verdict` watches one probe's requests, in order of their arrival, and says as early as it can whether the
share is above or below the target: at sample sizes that double, by exact (Clopper-Pearson) limits whose confidence is
shared among the looks (Bonferroni), so looking early costs nothing in honesty. `RateSearch` asks for rates: first by
doubling or halving until one passes and one fails, then the geometric middle until both are close.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from bench.load.statistics import Interval, clopper_pearson

FIRST_LOOK = 20  # requests


class Decision(Enum):
    """What a probe says of its rate."""

    ABOVE = "above"  # the share is met, with confidence
    BELOW = "below"  # it is missed, with confidence
    LIKELY_ABOVE = "likely above"  # all requests seen, the limits hold the target: by the share alone
    LIKELY_BELOW = "likely below"
    SERVER_ENDED = "the server ended"  # so it says nothing of its rate

    @property
    def passes(self) -> bool:
        return self in (Decision.ABOVE, Decision.LIKELY_ABOVE)

    @property
    def sure(self) -> bool:
        return self in (Decision.ABOVE, Decision.BELOW)


class Verdict:
    """On one probe of num requests at most, of which the first `skip` do not count."""

    def __init__(self, num: int, target: float, confidence: float = 0.95, skip: int = 0) -> None:
        self._num, self._target, self._skip = num, target, skip
        self._met: list[bool | None] = [None] * num
        self._known = skip  # all before it are known, or skipped
        self._met_so_far = 0
        counted = max(1, num - skip)
        self._looks = [FIRST_LOOK << n for n in range(20) if FIRST_LOOK << n < counted] + [counted]
        self._confidence = 1 - (1 - confidence) / len(self._looks)
        self._next_look = 0
        self.decision: Decision | None = None

    def tell(self, index: int, met: bool) -> Decision | None:
        """Of one request, once; returns the decision when it is made, and from then on."""
        if self._met[index] is None:
            self._met[index] = met
        while self._known < self._num and (now := self._met[self._known]) is not None:
            self._known += 1
            self._met_so_far += now
            self._look()
        return self.decision

    def _look(self) -> None:
        if self.decision is not None or self.num_known < self._looks[self._next_look]:
            return
        self._next_look += 1
        limits = clopper_pearson(self._met_so_far, self.num_known, self._confidence)
        if limits.low > self._target:
            self.decision = Decision.ABOVE
        elif limits.high < self._target:
            self.decision = Decision.BELOW
        elif self._next_look == len(self._looks):
            likely = self.attainment >= self._target
            self.decision = Decision.LIKELY_ABOVE if likely else Decision.LIKELY_BELOW

    @property
    def num_known(self) -> int:
        return self._known - self._skip

    @property
    def num_met(self) -> int:
        return self._met_so_far

    @property
    def attainment(self) -> float:
        return self._met_so_far / self.num_known if self.num_known else 0.0

    def concluded(self) -> Decision:
        """The decision, or what the requests so far make likely (a probe that was cut)."""
        return self.decision or (
            Decision.LIKELY_ABOVE if self.num_known and self.attainment >= self._target else Decision.LIKELY_BELOW
        )

    def is_known(self, index: int) -> bool:
        return index < self._skip or self._met[index] is not None


@dataclass(frozen=True, slots=True)
class Probe:
    """One rate that was tried."""

    rate: float
    decision: Decision
    num_met: int
    num_requests: int
    limits: Interval  # of the attainment, 95 %


@dataclass(frozen=True, slots=True)
class Goodput:
    """What the search found, requests per second."""

    rate: float  # highest that passed; 0 when none did
    low: float  # the highest rate that passed with confidence
    high: float  # the lowest that failed with confidence; inf when none did
    probes: tuple[Probe, ...]
    bounded: bool  # a rate failed: the server was the limit, not the search
    complete: bool  # to the resolution; False: it was cut short
    server_ended: bool = False  # that cut it short


class RateSearch:
    """`next_rate` until it gives None; after each, `tell` its probe."""

    def __init__(self, start: float, resolution: float = 0.05, lowest: float = 1e-3, highest: float = 1e6) -> None:
        self._start, self._resolution = start, resolution
        self._lowest, self._highest = lowest, highest
        self._probes: list[Probe] = []

    def next_rate(self) -> float | None:
        passed, failed = self._best(), self._worst()
        if not self._probes:
            return self._start
        if failed is None:
            assert passed is not None
            return min(2 * passed, self._highest) if passed < self._highest else None
        if passed is None:
            return max(failed / 2, self._lowest) if failed > self._lowest else None
        return None if failed / passed <= 1 + self._resolution else math.sqrt(failed * passed)

    def tell(self, probe: Probe) -> None:
        self._probes.append(probe)

    def _best(self) -> float | None:
        """The highest that passed below the lowest that failed: noise may let a higher one pass."""
        worst = self._worst()
        passed = [one.rate for one in self._probes if one.decision.passes and (worst is None or one.rate < worst)]
        return max(passed, default=None)

    def _worst(self) -> float | None:
        return min((one.rate for one in self._probes if not one.decision.passes), default=None)

    def result(self) -> Goodput:
        """Also of a search that was cut short."""
        sure = [one for one in self._probes if one.decision.sure]
        failed = min((one.rate for one in sure if not one.decision.passes), default=math.inf)
        passed = max((one.rate for one in sure if one.decision.passes and one.rate < failed), default=0.0)
        return Goodput(
            self._best() or 0.0,
            passed,
            failed,
            tuple(self._probes),
            self._worst() is not None,
            self.next_rate() is None,
        )
