"""When news go out: at once while the loop has time, together when it has not.

A client's writer costs its loop much more than the token that it writes. So once the writers that were woken last took
more than half of the loop's time since, the next ones wait until it was half, and what comes meanwhile goes out
with it: under load there are fewer and larger messages, and the workers are read without delay. Without load
nothing ever waits.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

MAX_HOLD_S = 0.005
"""No token waits longer, however busy the loop is."""
OFF_TIME = 1.0
"""Time that others get for the time that writers took."""


class Doorbell:
    """Of one event loop. Everyone who rings is called once, in order, soon."""

    def __init__(
        self, now_s: Callable[[], float] = time.monotonic, busy_s: Callable[[], float] = time.thread_time
    ) -> None:
        """`busy_s`: how long the loop's thread has worked so far."""
        self._now_s = now_s
        self._busy_s = busy_s
        self._callers: list[Callable[[], None]] = []
        self._answered_at_s = -math.inf
        self._busy_before_s = 0.0  # when it answered last

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
        busy_s = self._busy_s() - self._busy_before_s
        return min(MAX_HOLD_S, self._answered_at_s + (1.0 + OFF_TIME) * busy_s - self._now_s())

    def _answer(self) -> None:
        callers, self._callers = self._callers, []
        self._answered_at_s, self._busy_before_s = self._now_s(), self._busy_s()
        for answer in callers:
            answer()
