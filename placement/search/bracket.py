"""What is known of a placement's goodput from the rates looked at so far, and which to look at next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

LONGEST = 400_000  # requests that a run may have: at thousands a second it is minutes long
_STRAIGHT = 0.15  # below the target: so far attainment falls about like a line
_NOTHING = 1e-3  # of the bound: not looked at below
GROW = 4  # a run is made at most so many times as long at once: what is known of a short one is uncertain too


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
    growth: float = 0.0  # the share of the requests that stayed behind, as a line through the backlog has it

    def surely_good(self, target: float) -> bool:
        """Not only by chance."""
        return self.verdict is Verdict.GOOD and self.share - self.half_width >= target

    def clearly_bad(self, target: float) -> bool:
        """By more than two runs of almost the same rate differ."""
        return self.verdict is Verdict.UNSTABLE or self.share + self.half_width / 2 < target

    def surely_bad(self, target: float) -> bool:
        """Not only by chance."""
        return self.verdict is Verdict.UNSTABLE or self.share + self.half_width < target


def requests_for(known: Attainment, distance: float) -> int:
    """About how many tell that a share is so far from the target, where `known` is how sure so many are."""
    if distance == 0.0:
        return LONGEST
    return int(min(LONGEST, known.num_requests * (known.half_width / distance) ** 2))


class Bracket:
    """Where the goodput lies: above the highest rate seen to be good, below the lowest above it that is not.

    `hints`: probes of fewer requests, the longest last. They stand for an end until there is a probe, and may be wrong.
    """

    def __init__(self, upper: float, target: float, tolerance: float, hints: Sequence[Attainment] = ()) -> None:
        self.probes: list[Attainment] = []
        self.low: Attainment | None = None
        self.high: Attainment | None = None
        self._upper, self._target, self._tolerance = upper, target, tolerance
        self._hints = tuple(hints)
        self._slow = False  # the last probe did not halve it

    @property
    def low_rate(self) -> float:
        return 0.0 if self.low is None else self.low.rate

    @property
    def high_rate(self) -> float:
        return self._upper if self.high is None else self.high.rate

    @property
    def closed(self) -> bool:
        """Whether it is as narrow as it should be, or nothing is good."""
        low, high = self._ends()
        nothing = low is None and high is not None and high.rate < _NOTHING * self._upper
        return nothing or self.high_rate - self.low_rate <= self._tolerance * self.high_rate

    @property
    def settled(self) -> bool:
        """Of short runs, which may be wrong: whether they tell no more."""
        unsure = self.low is None and self.high is not None and not self.high.surely_bad(self._target)
        return unsure or self.closed

    def enter(self, found: Attainment) -> None:
        """The probe of `next_rate`."""
        before = self._width()
        self.probes.append(found)
        if found.verdict is Verdict.GOOD:
            self.low = found
        else:
            self.high = found
        self._slow = self._width() > before / 2

    def next_rate(self) -> float:
        """Where to look next: where attainment should cross the target, or else in the middle."""
        if not self.probes and not self._hints:
            return 0.75 * self._upper  # it is optimistic: three quarters of it is the likelier answer than a half
        low, high = self._ends()
        step = 0.95 * self._tolerance
        if low is None or high is None:
            return self._further(low, high, step)
        crossing = self._crossing(low, high)
        rate = (low.rate + high.rate) / 2 if self._slow or crossing is None else crossing
        least, most = low.rate * (1 + step), high.rate * (1 - step)  # whichever it is, the bracket may be closed then
        far = min(0.5, step * 2 ** len(self.probes))
        if self.high is None and self.low is not None:
            ahead = self._ahead(low, far)
            return max(rate, least, ahead if ahead < self._upper else 0.0)
        if self.low is None and self.high is not None:
            return min(rate, most, self._ahead(high, far))
        if rate < least < high.rate:
            return least
        return most if rate > most > low.rate else rate

    def requests_for(self, rate: float) -> int:
        """About how many a probe will take."""
        low, high = self._ends()
        if low is None or high is None:
            return 0
        crossing, known = self._crossing(low, high), max(low.num_requests, high.num_requests)
        if crossing is None:
            return min(low.num_requests, high.num_requests)
        end = min(low, high, key=lambda one: abs(one.share - self._target))
        slope = (low.share - high.share) / (high.rate - low.rate)
        return min(requests_for(end, slope * (rate - crossing)), GROW * known)

    def _further(self, low: Attainment | None, high: Attainment | None, step: float) -> float:
        """Where all were good, or none; with hints it is near."""
        step = min(0.5, step * 2 ** len(self.probes))
        if high is not None:
            return high.rate * (1 - step) if self._hints else high.rate / (2 if len(self.probes) < 3 else 4)
        assert low is not None
        middle = (low.rate + self._upper) / 2
        return min(low.rate * (1 + step), middle) if self._hints else middle

    def _ahead(self, end: Attainment, far: float) -> float:
        """From a probe to where attainment is the target, as steeply as it last fell; not further than `far`."""
        if end.verdict is Verdict.UNSTABLE:
            return end.rate * (1 - min(end.growth, far))
        limit = end.rate * (1 + (far if end.verdict is Verdict.GOOD else -far))
        one, other = (self.probes if len(self.probes) > 1 else self._hints if len(self._hints) > 1 else (end, end))[-2:]
        if one.rate == other.rate or max(abs(known.share - self._target) for known in (one, other)) > _STRAIGHT:
            return limit
        slope = (one.share - other.share) / (one.rate - other.rate)
        if slope >= 0.0:
            return limit
        found = end.rate + (self._target - end.share) / slope
        return min(found, limit) if end.verdict is Verdict.GOOD else max(found, limit)

    def _ends(self) -> tuple[Attainment | None, Attainment | None]:
        low, high = self.low, self.high
        for hint in reversed(self._hints):
            if hint.verdict is Verdict.GOOD:
                low = hint if low is None and hint.rate < (self._upper if high is None else high.rate) else low
            else:
                high = hint if high is None and hint.rate > (0.0 if low is None else low.rate) else high
        return low, high

    def _width(self) -> float:
        low, high = self._ends()
        return (self._upper if high is None else high.rate) - (0.0 if low is None else low.rate)

    def _crossing(self, low: Attainment, high: Attainment) -> float | None:
        """On the line through both ends; None where they are too far apart for one, or the backlog grew."""
        if not self._target - _STRAIGHT < high.share < self._target <= low.share:
            return None
        return low.rate + (high.rate - low.rate) * (low.share - self._target) / (low.share - high.share)


def interval(probes: Sequence[Attainment], target: float, rate: float, upper: float) -> tuple[float, float]:
    """The highest rate up to `rate` that is surely good, and the lowest above it that is surely bad."""
    good = [probe.rate for probe in probes if probe.rate <= rate and probe.surely_good(target)]
    bad = [probe.rate for probe in probes if probe.rate > rate and probe.surely_bad(target)]
    return max(good, default=0.0), min(bad, default=max(upper, rate))
