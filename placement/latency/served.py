"""What steps take in a worker that serves, beside what the same steps take back to back on an engine alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from placement.latency.fitted import PiecewiseSteps, Regime
from placement.simulator.cluster import Jitter, LinearSteps, Slowdown, StepTimes, Warming
from scheduling.latency import LatencyCoefficients, LatencyModel


@dataclass(frozen=True, slots=True)
class ServedSteps:
    """A worker that serves has rested before a step, shares its interpreter with its messages, and its machine."""

    prefill_extra_s: float  # a step of prompts alone takes so much longer: it mostly comes after a rest
    decode_extra_s: float  # one of decodes alone: there is always one before it
    mixed_extra_s: float  # one of both
    warming: Warming
    slowdown: Slowdown
    jitter: Jitter

    def applied(self, steps: PiecewiseSteps) -> PiecewiseSteps:
        """The same steps, served."""
        return replace(
            steps,
            prefill=_longer(steps.prefill, self.prefill_extra_s),
            decode=_longer(steps.decode, self.decode_extra_s),
            mixed=_longer(steps.mixed, self.mixed_extra_s),
        )


@dataclass(frozen=True, slots=True)
class MockServed:
    """What a cluster of mock engines, whose steps take exactly what they are told to, adds beside its delays."""

    sequence_s: float  # between two steps, for each sequence beyond the first
    fronts_s: tuple[float, ...]  # what a request's way to its worker takes more than the median, equally likely each

    def applied(self, model: LatencyModel) -> LinearSteps:
        """With what sequences cost between steps; prompts' steps, of tens of ms, lose one's, some us: still linear."""
        c, more_s = model.coefficients, self.sequence_s
        base_s, per_sequence_s = max(0.0, c.base_s - more_s), c.per_decode_sequence_s + more_s
        return LinearSteps(replace(model, coefficients=replace(c, base_s=base_s, per_decode_sequence_s=per_sequence_s)))

    def jitter(self) -> Jitter:
        return Jitter(1.0, (1.0,), (1.0,), self.fronts_s)


def piecewise(c: LatencyCoefficients) -> PiecewiseSteps:
    """The router's four coefficients by kind of step."""
    return PiecewiseSteps(Regime.linear(c), Regime.linear(c, only_decodes=True), Regime.linear(c))


def as_piecewise(times: StepTimes) -> PiecewiseSteps:
    """A profile's fit, whichever it is. Errors: TypeError where the times are of something else."""
    if isinstance(times, LinearSteps):
        return piecewise(times.model.coefficients)
    if not isinstance(times, PiecewiseSteps):
        raise TypeError(f"step times are {type(times).__name__}: not of a profile")
    return times


def _longer(regime: Regime, extra_s: float) -> Regime:
    return replace(regime, seconds=tuple(one + extra_s for one in regime.seconds))
