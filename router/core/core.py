"""The router's core: sessions to the workers, and every request that runs on them.

one task per worker address:  connect -> events -> (lost) -> connect again, for ever
one housekeeping task:        silent workers, stalled clients, leases, the line in the log
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from pdserve.clock import Clock, MonotonicClock
from pdserve.errors import IncompatiblePeer, ServingError, Stopping, Unauthenticated
from pdserve.ids import new_boot_id
from router.core.config import CoreConfig
from router.core.fleet import Fleet, Worker
from router.core.messages import StatusReport
from router.core.requests import Requests
from router.core.running import RunningRequests
from router.core.session import WorkerSession
from router.core.stats import StatsLine
from router.core.stream import RequestStream
from router.core.worker_events import WorkerEvents
from router.interface import MetricsTarget, RouterRequest, WorkerView
from router.metrics import RouterMetrics
from router.record import RecordSink
from router.worker_series import WorkerSnapshot
from scheduling.routing import LeastPredictedLatency, Role, RoutingPolicy

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
        self.running = RunningRequests(self.metrics, every, self.clock, self.config.freed_grace_s)
        self.requests = Requests(self.config, self.fleet, policy, self.running, self.metrics, every, self.clock)
        self.worker_events = WorkerEvents(self.config, self.running, self.metrics, self.clock)
        self._boot_id = new_boot_id()
        self._secret = secret
        self._addresses = list(addresses)
        self._unseen = set(self._addresses)  # never connected: the cluster is not complete
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._housekeeper: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()  # a worker came or went
        self._draining = False

    # ---- life ----

    async def start(self) -> None:
        """Begin to connect; returns at once, `wait_ready` waits."""
        assert self._housekeeper is None, "started twice"
        self._housekeeper = asyncio.create_task(self._keep_house(), name="housekeeping")
        for address in self._addresses:
            self._keep(address)

    def add_worker(self, address: str) -> None:
        """Expect one more worker; nothing to do when it is known."""
        if address not in self._keepers:
            self._unseen.add(address)
            self._keep(address)

    async def remove_worker(self, address: str) -> None:
        """Expect it no more; what runs on it ends UNAVAILABLE."""
        task = self._keepers.pop(address, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._unseen.discard(address)
        self.fleet.forget(address)

    async def wait_ready(self) -> None:
        """Until `is_ready`; the caller sets the deadline."""
        while not self.is_ready():
            self._changed.clear()
            await self._changed.wait()

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait for the running ones; what still runs then ends UNAVAILABLE (False)."""
        self._draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self.running.wait_idle()
        except TimeoutError:
            self.running.fail_all("the router is stopping")
            return False
        return True

    async def close(self) -> None:
        """End everything at once. Safe to repeat."""
        self._draining = True
        self.running.fail_all("the router stopped")
        await asyncio.gather(*(worker.session.flush(_LAST_WORDS_S) for worker in self.fleet))
        tasks = [*self._keepers.values(), *([self._housekeeper] if self._housekeeper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._keepers.clear()
        self._housekeeper = None

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
        if self._draining:
            return "the router is draining"
        if self._unseen:
            return f"{len(self._unseen)} of {len(self._keepers)} workers have not answered yet"
        return "" if self.fleet.has(Role.DECODE) else f"no decode worker is up{self.fleet.lost_in_words()}"

    def metrics_text(self) -> bytes:
        return self.metrics.text()

    def metrics_targets(self) -> list[MetricsTarget]:
        return self.fleet.metrics_targets()

    def reject(self, request: RouterRequest, error: ServingError) -> None:
        self.requests.reject(request, error)

    def snapshots(self) -> list[WorkerSnapshot]:
        """For the metrics: every live worker."""
        return [_snapshot(worker) for worker in self.fleet]

    # ---- tasks ----

    def _keep(self, address: str) -> None:
        self._keepers[address] = asyncio.create_task(self._keep_session(address), name=f"session to {address}")

    async def _keep_session(self, address: str) -> None:
        """Connect, serve, and again; the one place where a session's errors end."""
        delay_s, said = self.config.session.reconnect_min_s, ""
        while True:
            session = WorkerSession(address, self._secret, self._boot_id, self.config.session)
            try:
                worker = self.fleet.admit(await session.connect(), session)
                delay_s, said = self.config.session.reconnect_min_s, ""
                await self._serve(worker)
            except ServingError as error:
                # An operator must see a refusal once; a worker that is still starting is no news.
                refused = isinstance(error, IncompatiblePeer | Unauthenticated)
                level = logging.ERROR if refused else logging.DEBUG
                if error.message != said:
                    log.log(level, "no session to worker at %s: %s", address, error.message)
                said = error.message
            except Exception:
                log.exception("session to worker at %s broke", address)
            finally:
                await session.close()
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, self.config.session.reconnect_max_s)

    async def _serve(self, worker: Worker) -> None:
        """Everything one live worker says, until it is lost."""
        identity = worker.identity
        log.info("worker %s (%s, %s) is up at %s", worker.id, identity.role.value, identity.device, identity.address)
        self._unseen.discard(identity.address)
        self._changed.set()
        try:
            async for event in worker.session.events():
                worker.heard_s = self.clock.now()
                if isinstance(event, StatusReport):
                    worker.note_status(event, worker.heard_s)
                else:
                    self.worker_events.handle(worker, event)
        except ServingError as error:
            log.warning("worker %s is lost: %s", worker.id, error.message)
        finally:
            self.metrics.worker_lost(_snapshot(worker))
            self.fleet.remove(worker)
            self.worker_events.worker_lost(worker)
            self._changed.set()
            self._tell_what_is_left(worker)

    def _tell_what_is_left(self, lost: Worker) -> None:
        """In the log, when it was the last one of its role."""
        if self._draining or self.fleet.has(lost.identity.role):
            return
        if lost.identity.role is Role.DECODE:
            log.error(
                "%s: every request is refused (UNAVAILABLE, 503); a broken connection is made again, "
                "a worker that ended is not started again: restart the server",
                self.why_not_ready(),
            )
        elif self.fleet.has(Role.DECODE):
            log.warning("no prefill worker is up: decode workers compute the prompts")

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


def _snapshot(worker: Worker) -> WorkerSnapshot:
    return WorkerSnapshot(worker.id, worker.role.value, worker.status)
