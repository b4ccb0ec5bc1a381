"""Percentiles, and how sure a share is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution, in the unit of its values; nan where there were none."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]]) -> Spread:
        """Percentiles are values that occurred: the smallest that the share of values does not exceed."""
        if not len(values):
            return cls(NAN, NAN, NAN, NAN)
        at = np.percentile(values, (50, 90, 99), method="inverted_cdf")
        return cls(float(np.mean(values)), *(float(one) for one in at))


@dataclass(frozen=True, slots=True)
class Interval:
    """Limits of a share, at a stated confidence."""

    low: float
    high: float


def wilson(met: int, num: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval: close to the stated confidence on average; (0, 1) of nothing.

    Source: Wilson, Probable inference, JASA 22 (1927).
    """
    if num == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, scale = met / num, 1 + z * z / num
    middle = (share + z * z / (2 * num)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def clopper_pearson(met: int, num: int, confidence: float = 0.95) -> Interval:
    """The exact interval: never less sure than stated, so decisions use it.

    Source: Clopper and Pearson, The use of confidence or fiducial limits, Biometrika 26 (1934).
    """
    tail = (1 - confidence) / 2
    low = 0.0 if met == 0 else _solve(lambda p: 1 - _at_most(met - 1, num, p), tail)
    high = 1.0 if met == num else 1 - _solve(lambda p: 1 - _at_most(num - met - 1, num, p), tail)
    return Interval(low, high)


def _at_most(met: int, num: int, share: float) -> float:
    """Probability that a binomial number is at most met."""
    if share <= 0 or share >= 1:
        return 1.0 if share <= 0 or met >= num else 0.0
    logs = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, num + 1)))))
    k = np.arange(met + 1)
    terms = logs[num] - logs[k] - logs[num - k] + k * math.log(share) + (num - k) * math.log1p(-share)
    return float(np.exp(terms).sum())


def _solve(rising: object, value: float) -> float:
    """The share at which a rising function has a value, by halving."""
    assert callable(rising)
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < value else (low, middle)
    return (low + high) / 2
