"""Every running request, by its id and by its attempt, and the one way out of a life.

`end` is that way: whatever ended a request, every worker that may still hold something of it is told to let go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

from pdserve.clock import Clock
from pdserve.errors import Stopping
from router.core.active import ActiveRequest
from router.core.ending import Ending, note, note_kept, record_of, release
from router.core.fleet import Worker
from router.metrics import RouterMetrics
from router.record import RecordSink
from scheduling.prefix_directory import PrefixDirectory


class RunningRequests:
    """Belongs to one event loop; only `wait_idle` waits."""

    def __init__(
        self, prefixes: PrefixDirectory, metrics: RouterMetrics, sinks: tuple[RecordSink, ...], clock: Clock,
        freed_grace_s: float,
    ) -> None:  # fmt: skip
        """`sinks` hear of every end, the metrics are one of them; `prefixes` of what is kept then."""
        self.by_id: dict[str, ActiveRequest] = {}
        self.by_attempt: dict[int, ActiveRequest] = {}  # the same requests
        self._prefixes = prefixes
        self._metrics = metrics
        self._sinks = sinks
        self._clock = clock
        self._freed_grace_s = freed_grace_s
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self.by_id)

    def __iter__(self) -> Iterator[ActiveRequest]:
        """Those of this moment, so that each may be ended on the way."""
        return iter(tuple(self.by_id.values()))

    def add(self, active: ActiveRequest) -> None:
        """It runs from now on."""
        self.by_id[active.key.request_id] = self.by_attempt[active.key.attempt] = active
        self._idle.clear()

    def end(self, active: ActiveRequest, outcome: Ending, now_s: float | None = None) -> None:
        """Timers stopped, workers released, counted, the client told; called once for each."""
        assert not active.ended, f"{active.key} ended twice"
        active.ended = True
        del self.by_id[active.key.request_id], self.by_attempt[active.key.attempt]
        if not self.by_id:
            self._idle.set()
        active.timers.cancel()
        release(active, outcome, self._freed_grace_s)
        if active.order.duplicates:
            self._metrics.stale("duplicate_token", active.order.duplicates)
        try:
            note(self._sinks, record_of(active, outcome, self._clock.now() if now_s is None else now_s), outcome)
            note_kept(self._prefixes, active, outcome)
        finally:
            active.stream.end(outcome)  # whatever happens to the books, the client is told

    def fail_all(self, reason: str) -> None:
        """End everything, UNAVAILABLE: the router stops."""
        for active in self:
            self.end(active, Stopping(reason))

    async def wait_idle(self) -> None:
        """Until nothing runs."""
        await self._idle.wait()

    def check(self, workers: Iterable[Worker]) -> None:
        """Every running request is watched, unended and known to its workers."""
        assert list(self.by_attempt.values()) == list(self.by_id.values())
        for request_id, active in self.by_id.items():
            assert active.key.request_id == request_id and not active.ended
            assert active.timers.deadline is not None, f"{request_id} has no deadline"
            active.order.check()
        for worker in workers:
            for key in worker.holding:
                known = self.by_id.get(key.request_id)
                assert known is None or known.key != key or worker in known.parties
