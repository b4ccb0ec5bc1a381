"""When news go out: at once while the loop has time, together when it has not.

A client's writer costs its loop much more than the token that it writes. So once the writers that were woken last took
more than a third of the loop's time since, the next ones wait until it was a third, and what comes meanwhile goes out
with it: under load there are fewer and larger messages, and the workers are read without delay. Without load nothing
ever waits.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import Callable
from functools import cache

MAX_HOLD_S = 0.005
"""No token waits longer, however busy the loop is."""
QUIET_S = 0.001
"""When nothing more came for so long, nothing is gained by waiting."""
OFF_TIME = 2.0
"""Time that others get for the time that writers took."""


def thread_needed_s() -> float:
    """How long this thread has run or waited for a processor; where the kernel does not say, how long it has run."""
    file = _schedstat(threading.get_native_id())
    if file is None:
        return time.thread_time()
    ran_ns, waited_ns, _ = os.pread(file, 80, 0).split()
    return 1e-9 * (int(ran_ns) + int(waited_ns))


@cache
def _schedstat(thread_id: int) -> int | None:
    """Kept open: one for each thread that ever ran a loop."""
    try:
        file = os.open(f"/proc/self/task/{thread_id}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    if len(os.pread(file, 80, 0).split()) == 3:
        return file
    os.close(file)
    return None


class Doorbell:
    """Of one event loop. Everyone who rings is called once, in order, soon."""

    def __init__(
        self, now_s: Callable[[], float] = time.monotonic, busy_s: Callable[[], float] = thread_needed_s
    ) -> None:
        """`busy_s`: how long the loop's thread has worked, or would have, so far."""
        self._now_s = now_s
        self._busy_s = busy_s
        self.has_more = False  # set by those who have rung and have more news
        self._callers: list[Callable[[], None]] = []
        self._answered_at_s = -math.inf
        self._busy_before_s = 0.0  # when it answered last

    def ring(self, answer: Callable[[], None]) -> None:
        """Have `answer` called; it must not raise. Who rings again before that is called again."""
        self._callers.append(answer)
        if len(self._callers) > 1:
            self.has_more = True
            return
        now_s = self._now_s()
        busy_s = self._busy_s() - self._busy_before_s
        hold_s = min(MAX_HOLD_S, self._answered_at_s + (1.0 + OFF_TIME) * busy_s - now_s)
        if hold_s <= 0.0:
            asyncio.get_running_loop().call_soon(self._answer)
        else:
            self._hold(now_s + hold_s)

    def _hold(self, until_s: float) -> None:
        self.has_more = False
        asyncio.get_running_loop().call_later(min(QUIET_S, until_s - self._now_s()), self._look, until_s)

    def _look(self, until_s: float) -> None:
        if self.has_more and self._now_s() < until_s:
            self._hold(until_s)
        else:
            self._answer()

    def _answer(self) -> None:
        callers, self._callers = self._callers, []
        self._answered_at_s, self._busy_before_s = self._now_s(), self._busy_s()
        for answer in callers:
            answer()
