"""How long prompts and outputs are: distributions given by their quantile function, and pairs that go together.

Every distribution answers for a column of ranks u in (0, 1), so a pair is correlated the same way whatever its two
parts are: by two normal numbers with the stated correlation, turned into ranks (a Gaussian copula).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

import numpy as np

from placement.workload.workload import Floats, Ints

_Z = np.linspace(-6.0, 6.0, 4801)
_PHI = np.array([NormalDist().cdf(z) for z in _Z])


def normal_ranks(z: Floats) -> Floats:
    """The normal distribution function, to 1e-6; beyond six deviations it is flat."""
    ranks: Floats = np.interp(z, _Z, _PHI)
    return ranks


def normal_quantiles(u: Floats) -> Floats:
    """Its inverse."""
    return np.interp(u, _PHI, _Z)


class Lengths(Protocol):
    """A distribution of token counts."""

    def quantile(self, u: Floats) -> Floats:
        """Lengths of those ranks, not rounded; whoever draws rounds, and keeps them at 1 at least."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same."""

    tokens: int

    def quantile(self, u: Floats) -> Floats:
        return np.full(len(u), float(self.tokens))


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every whole number from low to high alike, both included."""

    low: int
    high: int

    def quantile(self, u: Floats) -> Floats:
        return self.low - 0.5 + u * (self.high - self.low + 1)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """By its mean and coefficient of variation (deviation over mean)."""

    mean: float
    cv: float

    def quantile(self, u: Floats) -> Floats:
        variance = math.log1p(self.cv**2)
        return self.mean * np.exp(math.sqrt(variance) * normal_quantiles(u) - variance / 2)


@dataclass(frozen=True, slots=True)
class Quantiles:
    """By a few points of its quantile function, straight lines between them."""

    percents: tuple[float, ...]  # from 0 to 100
    tokens: tuple[float, ...]

    def quantile(self, u: Floats) -> Floats:
        return np.interp(100 * u, self.percents, self.tokens)


@dataclass(frozen=True, slots=True)
class Empirical:
    """Values that occurred, each as likely as it was frequent."""

    ordered: Ints  # ascending

    @classmethod
    def of(cls, values: Ints) -> Empirical:
        return cls(np.sort(values))

    def quantile(self, u: Floats) -> Floats:
        at = np.minimum((u * len(self.ordered)).astype(np.int64), len(self.ordered) - 1)
        return self.ordered[at].astype(np.float64)


class LengthPairs(Protocol):
    """Prompt and output of a request together."""

    def draw(self, num: int, dice: np.random.Generator) -> tuple[Ints, Ints]: ...


@dataclass(frozen=True, slots=True)
class Pairs:
    """Two distributions and how they go together."""

    prompt: Lengths
    output: Lengths
    correlation: float = 0.0  # of the normal numbers behind the ranks; Spearman's is 6/pi asin(half of it)

    def draw(self, num: int, dice: np.random.Generator) -> tuple[Ints, Ints]:
        first, second = dice.standard_normal((num, 2)).T  # by rows: a longer draw begins as a shorter one
        mixed = self.correlation * first + math.sqrt(1 - self.correlation**2) * second
        ranks = normal_ranks(first), normal_ranks(mixed)
        return _whole(self.prompt.quantile(ranks[0])), _whole(self.output.quantile(ranks[1]))


@dataclass(frozen=True, slots=True)
class ObservedPairs:
    """Pairs that occurred, drawn with replacement: whatever correlation they had is kept."""

    prompt_tokens: Ints
    output_tokens: Ints

    def draw(self, num: int, dice: np.random.Generator) -> tuple[Ints, Ints]:
        at = dice.integers(len(self.prompt_tokens), size=num)
        return self.prompt_tokens[at], self.output_tokens[at]


def _whole(lengths: Floats) -> Ints:
    return np.maximum(np.rint(lengths), 1).astype(np.int64)
