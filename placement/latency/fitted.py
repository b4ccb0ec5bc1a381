"""Step times that were measured: per kind of step a curve over the rows of its matrices, and linear terms.

A step's tokens go through the matrices as rows, whatever sequence they are of; kernels work on tiles of rows, so time
over rows is no straight line. What attention reads is linear in query-key pairs and in context. Steps of prompts alone,
of decodes alone and mixed ones take other paths, so each kind has its own curve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

from scheduling.latency import LatencyCoefficients

MAX_KNOTS = 12  # what the compiled simulator has room for


@dataclass(frozen=True, slots=True)
class Regime:
    """One kind of step: seconds = curve(rows_scale * rows) + the linear terms. Beyond its ends the curve goes on."""

    rows: tuple[float, ...]  # growing, 2 to MAX_KNOTS
    seconds: tuple[float, ...]  # of the curve, at `rows`
    per_pair_s: float = 0.0
    per_sequence_s: float = 0.0
    per_context_s: float = 0.0
    rows_scale: float = 1.0

    def __post_init__(self) -> None:
        if not 2 <= len(self.rows) <= MAX_KNOTS or len(self.rows) != len(self.seconds):
            raise ValueError(f"{len(self.rows)} rows and {len(self.seconds)} seconds: 2 to {MAX_KNOTS} of each")
        numbers = (*self.rows, *self.seconds, self.per_pair_s, self.per_sequence_s, self.per_context_s, self.rows_scale)
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("rows, seconds and coefficients must be finite numbers")
        if any(after <= before for before, after in pairwise(self.rows)):
            raise ValueError(f"rows are {list(self.rows)}; they must grow")
        if self.seconds[-1] < self.seconds[-2]:
            raise ValueError(f"seconds end with {self.seconds[-2]}, {self.seconds[-1]}; the last must not be less")

    @classmethod
    def linear(cls, c: LatencyCoefficients, only_decodes: bool = False) -> Regime:
        """The router's four coefficients as a regime."""
        per_row = c.per_decode_sequence_s if only_decodes else c.per_prefill_token_s
        extra = 0.0 if only_decodes else c.per_decode_sequence_s - per_row
        return cls((0.0, 1.0), (c.base_s, c.base_s + per_row), 0.0, extra, c.per_context_token_s)

    def scaled(self, factor: float) -> Regime:
        """All of it takes `factor` times as long."""
        return replace(
            self,
            seconds=tuple(factor * one for one in self.seconds),
            per_pair_s=factor * self.per_pair_s,
            per_sequence_s=factor * self.per_sequence_s,
            per_context_s=factor * self.per_context_s,
        )

    def step_s(self, rows: int, pairs: float, sequences: int, context: int) -> float:
        """`placement.simulator.fast.steps` has the same, operation by operation."""
        at, i = self.rows_scale * rows, 0
        while i < len(self.rows) - 2 and at >= self.rows[i + 1]:
            i += 1
        slope = (self.seconds[i + 1] - self.seconds[i]) / (self.rows[i + 1] - self.rows[i])
        curve = self.seconds[i] + slope * (at - self.rows[i])
        linear = self.per_pair_s * pairs + self.per_sequence_s * sequences + self.per_context_s * context
        return max(0.0, curve + linear)


@dataclass(frozen=True, slots=True)
class PiecewiseSteps:
    """Step times by kind of step; a `StepTimes` of both simulators."""

    prefill: Regime
    decode: Regime
    mixed: Regime
    large_decode: Regime | None = None  # of decode steps of at least `large_from` sequences
    large_from: float = math.inf

    def batch_s(self, prefill_tokens: int, prefill_pairs: float, decode_sequences: int, context_tokens: int) -> float:
        """One step."""
        regime = self.regime(prefill_tokens, decode_sequences)
        rows = prefill_tokens + decode_sequences
        return regime.step_s(rows, prefill_pairs, decode_sequences, context_tokens)

    def regime(self, prefill_tokens: int, decode_sequences: int) -> Regime:
        if decode_sequences == 0:
            return self.prefill
        if prefill_tokens > 0:
            return self.mixed
        if self.large_decode is not None and decode_sequences >= self.large_from:
            return self.large_decode
        return self.decode
