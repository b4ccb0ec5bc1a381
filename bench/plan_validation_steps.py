"""How long the real steps of a run took, by role, beside the simulated ones: what is the fit's, what the machine's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bench.profiler.alone import Totals, since
from placement.latency.fitted import PiecewiseSteps
from placement.simulator.cluster import ClusterSpec, LinearSteps, StepTimes
from placement.simulator.results import SimulationResult
from scheduling.latency import LatencyCoefficients, LatencyModel

MIN_STEPS = 20  # of a role, to say anything


def slowdown(before: Totals, after: Totals, told: SimulationResult, twin: ClusterSpec) -> dict[str, float]:
    """Role -> mean real step / mean simulated step; the roles with too few steps are left out."""
    found = {}
    for role in {worker.role for worker in twin.workers}:
        name = role.value
        seconds, steps = since(before, after, name)
        counts = [told.workers[worker.worker_id] for worker in twin.workers if worker.role is role]
        busy_s, simulated = sum(one.busy_s for one in counts), sum(one.steps for one in counts)
        if min(steps, simulated) >= MIN_STEPS and busy_s > 0.0:
            found[name] = (seconds / steps) / (busy_s / simulated)
    return found


def slowed(twin: ClusterSpec, factors: Mapping[str, float]) -> ClusterSpec:
    """The twin with steps of each role so much longer."""
    workers = tuple(
        replace(one, step_times=_scaled(one.step_times, factors.get(one.role.value, 1.0))) for one in twin.workers
    )
    return replace(twin, workers=workers)


def _scaled(times: StepTimes, factor: float) -> StepTimes:
    if isinstance(times, PiecewiseSteps):
        return times.scaled(factor)
    assert isinstance(times, LinearSteps)
    c = times.model.coefficients
    values = (c.base_s, c.per_prefill_token_s, c.per_decode_sequence_s, c.per_context_token_s)
    return LinearSteps(LatencyModel(LatencyCoefficients(*(factor * one for one in values)), times.model.transfer))
