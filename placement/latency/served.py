"""What steps take in a worker that serves, beside what the same steps take back to back on an engine alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from placement.latency.fitted import PiecewiseSteps, Regime
from placement.simulator.cluster import Jitter, Slowdown, Warming
from scheduling.latency import LatencyCoefficients


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


def piecewise(c: LatencyCoefficients) -> PiecewiseSteps:
    """The router's four coefficients by kind of step."""
    return PiecewiseSteps(Regime.linear(c), Regime.linear(c, only_decodes=True), Regime.linear(c))


def _longer(regime: Regime, extra_s: float) -> Regime:
    return replace(regime, seconds=tuple(one + extra_s for one in regime.seconds))
