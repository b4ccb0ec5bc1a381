"""When news go out: at once while the loop has time, together when it has not.

A client's writer costs its loop much more than the token that it writes. So once the writers that were woken last took
more than half of the loop's time since, the next ones wait until it was half, and what comes meanwhile goes out
with it: under load there are fewer and larger messages, and the workers are read without delay. Without load
nothing ever waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

MAX_HOLD_S = 0.005
"""No token waits longer, however busy the loop is."""
OFF_TIME = 1.0
"""Time that others get for the time that writers took."""


class Doorbell:
    """Of one event loop. Everyone who rings is called once, in order, soon."""

    def __init__(self) -> None:
        self._callers: list[Callable[[], None]] = []
        self._answered_s = 0.0
        self._answered_cpu_s = 0.0  # this thread's

    def ring(self, answer: Callable[[], None]) -> None:
        """Have `answer` called; it must not raise. Who rings again before that is called again."""
        self._callers.append(answer)
        if len(self._callers) > 1:
            return
        loop = asyncio.get_running_loop()
        hold_s = self._hold_s()
        if hold_s <= 0.0:
            loop.call_soon(self._answer)
        else:
            loop.call_later(hold_s, self._answer)

    def _hold_s(self) -> float:
        """How long the loop should do other things first."""
        away_s = time.monotonic() - self._answered_s
        busy_s = time.thread_time() - self._answered_cpu_s
        return min(MAX_HOLD_S, (1.0 + OFF_TIME) * busy_s - away_s)

    def _answer(self) -> None:
        callers, self._callers = self._callers, []
        self._answered_s, self._answered_cpu_s = time.monotonic(), time.thread_time()
        for answer in callers:
            answer()
