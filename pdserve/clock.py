"""Monotonic time, injected so that tests and the simulator can own it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds from an arbitrary start, never backwards. Never subtract times of two processes."""

    def now(self) -> float: ...


class MonotonicClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that a test or a simulator moves."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        assert seconds >= 0.0
        self._now_s += seconds
