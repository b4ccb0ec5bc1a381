"""A virtual clock and what is to happen on it."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any


class EventQueue:
    """Events in order of time, those of one instant in the order they were given; a `Clock` for the code simulated."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._given = 0
        self.num_run = 0

    def now(self) -> float:
        return self._now_s

    def at(self, time_s: float, action: Callable[..., object], *args: Any) -> None:
        """Call `action(*args)` at `time_s`; an instant that has passed means now."""
        assert not math.isnan(time_s), "an event at no time"
        self._given += 1
        heapq.heappush(self._heap, (max(time_s, self._now_s), self._given, action, args))

    def after(self, delay_s: float, action: Callable[..., object], *args: Any) -> None:
        """Call `action(*args)` in `delay_s` seconds."""
        self.at(self._now_s + delay_s, action, *args)

    def run(self, until_s: float = math.inf) -> bool:
        """Run what is due by `until_s`; True when nothing is left."""
        heap = self._heap
        while heap and heap[0][0] <= until_s:
            self._now_s, _, action, args = heapq.heappop(heap)
            self.num_run += 1
            action(*args)
        return not heap
