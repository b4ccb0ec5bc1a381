"""From a worker's start line to an engine."""

from __future__ import annotations

import importlib

from pdserve.clock import Clock
from pdserve.config import WorkerStart
from worker.assembly import BuiltEngine
from worker.build_mock import build_mock


def build_engine(start: WorkerStart, clock: Clock) -> BuiltEngine:
    """Load (or mock) the model and make its pool. Raises what loading raises; ConfigError for a small pool."""
    if start.config.mock is not None:
        return build_mock(start, clock)
    # By name, because it imports torch and transformers: seconds that a mock worker never needs.
    built: BuiltEngine = importlib.import_module("worker.build_torch").build_torch(start, clock)
    return built
