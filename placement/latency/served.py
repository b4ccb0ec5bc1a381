"""What steps take in a worker that serves, beside what the same steps take back to back on an engine alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from placement.latency.fitted import PiecewiseSteps, Regime
from scheduling.latency import LatencyCoefficients


@dataclass(frozen=True, slots=True)
class ServedSteps:
    """A worker that serves has rested before a step, shares its interpreter with its messages, and its machine."""

    prefill_extra_s: float  # a step of prompts alone takes so much longer: it mostly comes after a rest
    decode_extra_s: float  # any other: there is always one before it
    slowdown: tuple[float, ...]  # `ClusterSpec.slowdown`

    def __post_init__(self) -> None:
        if not self.slowdown or self.slowdown[0] != 1.0:
            raise ValueError(f"slowdown is {list(self.slowdown)}; it must begin with 1, for a worker alone")

    def applied(self, steps: PiecewiseSteps) -> PiecewiseSteps:
        """The same steps, served."""
        decode, mixed = (_longer(one, self.decode_extra_s) for one in (steps.decode, steps.mixed))
        return replace(steps, prefill=_longer(steps.prefill, self.prefill_extra_s), decode=decode, mixed=mixed)


def piecewise(c: LatencyCoefficients) -> PiecewiseSteps:
    """The router's four coefficients by kind of step."""
    return PiecewiseSteps(Regime.linear(c), Regime.linear(c, only_decodes=True), Regime.linear(c))


def _longer(regime: Regime, extra_s: float) -> Regime:
    return replace(regime, seconds=tuple(one + extra_s for one in regime.seconds))
