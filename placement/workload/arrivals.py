"""When requests come: renewal processes of a mean rate, rates that change, and times that were recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from placement.workload.lengths import Quantiles
from placement.workload.workload import Floats


class Arrivals(Protocol):
    """A process of arrivals. Times begin after 0, do not decrease, and depend on the dice alone."""

    def times(self, num: int, dice: np.random.Generator) -> Floats:
        """The first num arrivals, seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Poisson:
    """Gaps are exponential."""

    rate: float

    def times(self, num: int, dice: np.random.Generator) -> Floats:
        return np.cumsum(dice.standard_exponential(num)) / self.rate


@dataclass(frozen=True, slots=True)
class Gamma:
    """Gaps with a coefficient of variation: 1 is Poisson, more comes in bursts, less is more even."""

    rate: float
    cv: float

    def times(self, num: int, dice: np.random.Generator) -> Floats:
        if self.cv == 0:
            return Constant(self.rate).times(num, dice)
        shape = self.cv**-2
        return np.cumsum(dice.standard_gamma(shape, num)) / (shape * self.rate)


@dataclass(frozen=True, slots=True)
class Constant:
    """Every gap is the same."""

    rate: float

    def times(self, num: int, dice: np.random.Generator) -> Floats:
        return np.arange(1, num + 1) / self.rate


@dataclass(frozen=True, slots=True)
class GapTable:
    """Independent gaps with the quantiles of recorded ones, scaled to a rate."""

    rate: float
    gaps: Quantiles  # in any unit

    def times(self, num: int, dice: np.random.Generator) -> Floats:
        percents, values = np.array(self.gaps.percents), np.array(self.gaps.tokens)
        mean = float(np.sum(np.diff(percents) * (values[1:] + values[:-1]) / 2)) / 100
        times: Floats = np.cumsum(self.gaps.quantile(dice.random(num))) / (mean * self.rate)
        return times


@dataclass(frozen=True, slots=True)
class Piecewise:
    """Rates that hold for a while each, begun again after the last. A rate may be 0."""

    pieces: tuple[tuple[float, float], ...]  # (rate, seconds); some rate is above 0
    cv: float = 1.0  # of the gaps, in time that runs as fast as the rate

    def times(self, num: int, dice: np.random.Generator) -> Floats:
        expected = Gamma(1.0, self.cv).times(num, dice)  # how many should have come by then
        rates, seconds = np.array(self.pieces).T
        come = np.concatenate(([0.0], np.cumsum(rates * seconds)))
        clock = np.concatenate(([0.0], np.cumsum(seconds)))
        rounds, rest = np.divmod(expected, come[-1])
        piece = np.clip(np.searchsorted(come, rest, side="right") - 1, 0, len(rates) - 1)
        within = np.divide(rest - come[piece], rates[piece], out=np.zeros(num), where=rates[piece] > 0)
        whole: Floats = rounds * clock[-1] + clock[piece] + within
        return np.maximum.accumulate(whole)


@dataclass(frozen=True, slots=True)
class Replay:
    """Recorded times, moved to begin at 0; after the last they begin again, a mean gap later."""

    recorded_s: Floats

    def times(self, num: int, dice: np.random.Generator) -> Floats:
        first = self.recorded_s - self.recorded_s[0]
        period_s = first[-1] * len(first) / max(1, len(first) - 1)
        rounds, at = np.divmod(np.arange(num), len(first))
        repeated: Floats = first[at] + rounds * period_s
        return repeated
