"""How much of a recorded trace is looked at: its first requests may be shorter, or longer, than the others."""

from __future__ import annotations

from placement.workload.source import WorkloadSource
from placement.workload.workload import Workload

MOST_TRACE = 20_000  # requests of a trace by which one run judges
_SAMPLE = 4000


def recorded_in(source: WorkloadSource) -> int:
    """Requests of a trace that are taken one after another; 0: there is none, or they are drawn from all over it."""
    return 0 if source.recorded is None or source.spec.resample else len(source.recorded)


def judged_of(source: WorkloadSource) -> int:
    """Requests of a trace by which a run that decides judges."""
    return min(recorded_in(source), MOST_TRACE)


def sample_of(source: WorkloadSource, seed: int) -> Workload:
    """What bounds are computed of: all requests of a trace, else some."""
    return source.build(rate=1.0, num_requests=recorded_in(source) or _SAMPLE, seed=seed)
