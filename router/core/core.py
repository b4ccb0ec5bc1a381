"""The router's core: sessions to the workers, and every request that runs on them.

one task per worker address:  connect -> events -> (lost) -> connect again, for ever (keeper.py)
one housekeeping task:        silent workers, stalled clients, leases, the line in the log
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from pdserve.clock import Clock, MonotonicClock
from pdserve.errors import ServingError, Stopping
from router.core.config import CoreConfig
from router.core.fleet import Fleet
from router.core.keeper import SessionKeeper
from router.core.requests import Requests
from router.core.running import RunningRequests
from router.core.stats import StatsLine
from router.core.stream import RequestStream
from router.core.worker_events import WorkerEvents
from router.interface import MetricsTarget, RouterRequest, WorkerView
from router.metrics import RouterMetrics
from router.record import RecordSink
from router.worker_series import WorkerSnapshot
from scheduling.routing import RoutingPolicy
from scheduling.routing_policies import LeastPredictedLatency

log = logging.getLogger(__name__)

_LAST_WORDS_S = 0.5  # for aborts to leave when the core closes


class Core:
    """A `RouterCore`. Belongs to one event loop: start, use, drain, close."""

    def __init__(
        self,
        addresses: Iterable[str],
        secret: str,
        config: CoreConfig | None = None,
        *,
        policy: RoutingPolicy | None = None,
        clock: Clock | None = None,
        sinks: Iterable[RecordSink] = (),
        metrics: type[RouterMetrics] = RouterMetrics,
    ) -> None:
        """`addresses` are host:port of the workers' services, `secret` the cluster's; `sinks` hear of every end."""
        self.config = config or CoreConfig()
        self.clock = clock or MonotonicClock()
        self.fleet = Fleet(self.clock)
        self.metrics = metrics(self, self.config.slos, self.config.tenants)
        policy = policy or LeastPredictedLatency(self.config.routing)
        every = (self.metrics, *sinks)
        self.running = RunningRequests(self.fleet.prefixes, self.metrics, every, self.clock, self.config.freed_grace_s)
        self.requests = Requests(self.config, self.fleet, policy, self.running, self.metrics, every, self.clock)
        self.worker_events = WorkerEvents(self.config, self.running, self.fleet.prefixes, self.metrics, self.clock)
        self.keeper = SessionKeeper(
            secret, self.config.session, self.fleet, self.worker_events, self.metrics, self.clock
        )
        self._addresses = list(addresses)
        self._housekeeper: asyncio.Task[None] | None = None
        self._draining = False

    # ---- life ----

    async def start(self) -> None:
        """Begin to connect; returns at once, `wait_ready` waits."""
        assert self._housekeeper is None, "started twice"
        self._housekeeper = asyncio.create_task(self._keep_house(), name="housekeeping")
        for address in self._addresses:
            self.keeper.expect(address)

    def add_worker(self, address: str) -> None:
        """Expect one more worker; nothing to do when it is known."""
        self.keeper.expect(address)

    async def remove_worker(self, address: str) -> None:
        """Expect it no more; what runs on it ends UNAVAILABLE."""
        await self.keeper.forget(address)

    async def wait_ready(self) -> None:
        """Until `is_ready`; the caller sets the deadline."""
        while not self.is_ready():
            self.keeper.changed.clear()
            await self.keeper.changed.wait()

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait for the running ones; what still runs then ends UNAVAILABLE (False)."""
        self._draining = self.keeper.stopping = True
        try:
            async with asyncio.timeout(timeout_s):
                await self.running.wait_idle()
        except TimeoutError:
            self.running.fail_all("the router is stopping")
            return False
        return True

    async def close(self) -> None:
        """End everything at once. Safe to repeat."""
        self._draining = self.keeper.stopping = True
        self.running.fail_all("the router stopped")
        await asyncio.gather(*(worker.session.flush(_LAST_WORDS_S) for worker in self.fleet))
        if self._housekeeper is not None:
            self._housekeeper.cancel()
            await asyncio.gather(self._housekeeper, return_exceptions=True)
            self._housekeeper = None
        await self.keeper.close()

    # ---- RouterCore ----

    def submit(self, request: RouterRequest) -> RequestStream:
        if self._draining:
            error = Stopping("the router is draining", retry_after_s=2.0)
            self.requests.reject(request, error)
            raise error
        return self.requests.submit(request)

    def abort(self, request_id: str, tenant: str) -> bool:
        return self.requests.abort(request_id, tenant)

    def workers(self) -> list[WorkerView]:
        return self.fleet.views()

    def is_ready(self) -> bool:
        return not self.why_not_ready()

    def why_not_ready(self) -> str:
        return "the router is draining" if self._draining else self.keeper.what_is_missing()

    def metrics_text(self) -> bytes:
        return self.metrics.text()

    def metrics_targets(self) -> list[MetricsTarget]:
        return self.fleet.metrics_targets()

    def reject(self, request: RouterRequest, error: ServingError) -> None:
        self.requests.reject(request, error)

    def snapshots(self) -> list[WorkerSnapshot]:
        """For the metrics: every live worker."""
        return [worker.snapshot() for worker in self.fleet]

    # ---- housekeeping ----

    async def _keep_house(self) -> None:
        stats, last_s = StatsLine(), self.clock.now()
        renewed_s = logged_s = last_s
        while True:
            await asyncio.sleep(self.config.tick_s)
            now_s = self.clock.now()
            lag_s = max(0.0, now_s - last_s - self.config.tick_s)
            self.metrics.loop_was_late(lag_s)
            self._watch_workers(now_s, late=lag_s > 1.0)
            last_s = now_s
            self.requests.check_stalled()
            if now_s - renewed_s >= self.config.renew_s:
                renewed_s = now_s
                self.fleet.sweep()
                for worker in self.fleet:
                    worker.renew()
            if now_s - logged_s >= self.config.stats_s:
                line = stats.next(len(self.running), self.worker_events.generated_tokens, now_s - logged_s, self.fleet)
                logged_s = now_s
                if line is not None:
                    log.info("%s", line)

    def _watch_workers(self, now_s: float, *, late: bool) -> None:
        """End the sessions of silent workers; when we ourselves stood still, nobody's silence counts."""
        for worker in self.fleet:
            if late:
                worker.heard_s = now_s
            elif now_s - worker.heard_s > self.config.silence_s:
                worker.session.fail(f"silent for {now_s - worker.heard_s:.1f} s")
