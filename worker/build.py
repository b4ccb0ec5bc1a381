"""From a worker's start line to an engine."""

from __future__ import annotations

import importlib

from pdserve.clock import Clock
from pdserve.config import WorkerStart
from pdserve.exit import ExitCode, StartError
from worker.assembly import BuiltEngine
from worker.build_mock import build_mock


def build_engine(start: WorkerStart, clock: Clock) -> BuiltEngine:
    """Load (or mock) the model and make its pool. Raises what loading raises; ConfigError for a small pool."""
    if start.config.mock is not None:
        return build_mock(start, clock)
    kind = "torch" if start.device == "cpu" else "gpu"
    try:
        # By name, because it imports torch and transformers: seconds that a mock worker never needs.
        built: BuiltEngine = getattr(importlib.import_module(f"worker.build_{kind}"), f"build_{kind}")(start, clock)
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise StartError(
            f"device is {start.device}; Triton is not installed: pip install 'pdserve[gpu]'", ExitCode.ENVIRONMENT
        ) from None
    return built
