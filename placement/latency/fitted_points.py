"""Measured steps, and how far a model is from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Predicts(Protocol):
    """Step times."""

    def batch_s(
        self, prefill_tokens: int, prefill_pairs: float, decode_sequences: int, context_tokens: int
    ) -> float: ...


@dataclass(frozen=True, slots=True)
class StepPoint:
    """One shape of step and how long it took."""

    prefill_tokens: int
    prefill_pairs: float  # query-key pairs of the prompt tokens
    decode_sequences: int
    context_tokens: int
    seconds: float  # the median
    spread: float = 0.0  # interquartile range over the median
    repeats: int = 1

    @property
    def regime(self) -> str:
        """prefill, decode or mixed."""
        if self.decode_sequences == 0:
            return "prefill"
        return "mixed" if self.prefill_tokens else "decode"

    @property
    def rows(self) -> int:
        """Of the matrices."""
        return self.prefill_tokens + self.decode_sequences

    @property
    def shape(self) -> tuple[int, float, int, int]:
        """The arguments of `batch_s`."""
        return self.prefill_tokens, self.prefill_pairs, self.decode_sequences, self.context_tokens


@dataclass(frozen=True, slots=True)
class Reach:
    """The largest steps that were measured: beyond them a fit is extrapolated."""

    step_tokens: float  # rows of a step with prompts in it
    sequences: float  # decodes of a step
    context_tokens: float  # of one sequence

    @classmethod
    def of(cls, points: Sequence[StepPoint]) -> Reach | None:
        """None without any points. Contexts are those of decodes alone and of prompts alone: all of one length."""
        if not points:
            return None
        contexts = [
            point.context_tokens / max(1, point.decode_sequences) for point in points if point.regime != "mixed"
        ]
        return cls(
            max((point.rows for point in points if point.prefill_tokens), default=0),
            max(point.decode_sequences for point in points),
            max(contexts, default=0.0),
        )


@dataclass(frozen=True, slots=True)
class FitError:
    """Relative errors of a set of points."""

    num: int
    median: float
    p90: float

    @classmethod
    def of(cls, errors: Sequence[float]) -> FitError:
        median, p90 = np.percentile(errors, (50, 90))
        return cls(len(errors), float(median), float(p90))


def relative_errors(model: Predicts, points: Sequence[StepPoint]) -> list[float]:
    """|predicted - measured| / measured, of each point."""
    return [abs(model.batch_s(*point.shape) - point.seconds) / point.seconds for point in points]


def by_regime(points: Sequence[StepPoint], errors: Sequence[float]) -> Mapping[str, FitError]:
    """Errors of each kind of step there is, and of all."""
    found: dict[str, list[float]] = {}
    for point, error in zip(points, errors, strict=True):
        found.setdefault(point.regime, []).append(error)
    return {name: FitError.of(values) for name, values in sorted(found.items())} | {"all": FitError.of(list(errors))}
