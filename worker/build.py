"""From a worker's start line to an engine."""

from __future__ import annotations

from pdserve.clock import Clock
from pdserve.config import WorkerStart
from worker.assembly import BuiltEngine
from worker.build_mock import build_mock


def build_engine(start: WorkerStart, clock: Clock) -> BuiltEngine:
    """Load (or mock) the model and make its pool. Raises what loading raises; ValueError for a small pool."""
    if start.config.mock is not None:
        return build_mock(start, clock)
    from worker.build_torch import build_torch

    return build_torch(start, clock)
