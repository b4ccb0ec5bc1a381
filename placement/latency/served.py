"""What steps take in a worker that serves, beside what the same steps take back to back on an engine alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from placement.latency.fitted import PiecewiseSteps, Regime
from placement.simulator.cluster import Jitter, LinearSteps, Slowdown, Warming
from scheduling.latency import LatencyCoefficients, LatencyModel


@dataclass(frozen=True, slots=True)
class ServedSteps:
    """A worker that serves has rested before a step, shares its interpreter with its messages, and its machine."""

    prefill_extra_s: float  # a step of prompts alone takes so much longer: it mostly comes after a rest
    decode_extra_s: float  # any other: there is always one before it
    warming: Warming
    slowdown: Slowdown
    jitter: Jitter

    def applied(self, steps: PiecewiseSteps) -> PiecewiseSteps:
        """The same steps, served."""
        decode, mixed = (_longer(one, self.decode_extra_s) for one in (steps.decode, steps.mixed))
        return replace(steps, prefill=_longer(steps.prefill, self.prefill_extra_s), decode=decode, mixed=mixed)


@dataclass(frozen=True, slots=True)
class MockServed:
    """What a cluster of mock engines, whose steps take exactly what they are told to, adds beside its delays."""

    sequence_s: float  # between two steps, for each sequence beyond the first
    fronts_s: tuple[float, ...]  # what a request's way to its worker takes more than the median, equally likely each

    def applied(self, model: LatencyModel) -> LinearSteps:
        """Decodes with what each costs between steps; a lone one's is in the delays."""
        c = model.coefficients
        return LinearSteps(
            LatencyModel(replace(c, per_decode_sequence_s=c.per_decode_sequence_s + self.sequence_s), model.transfer)
        )

    def jitter(self) -> Jitter:
        return Jitter(1.0, (1.0,), (1.0,), self.fronts_s)


def piecewise(c: LatencyCoefficients) -> PiecewiseSteps:
    """The router's four coefficients by kind of step."""
    return PiecewiseSteps(Regime.linear(c), Regime.linear(c, only_decodes=True), Regime.linear(c))


def _longer(regime: Regime, extra_s: float) -> Regime:
    return replace(regime, seconds=tuple(one + extra_s for one in regime.seconds))
