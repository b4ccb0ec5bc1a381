"""A session to every worker that is expected: connected, served, and when it is lost connected again, for ever.

One task per worker address; the one place where a session's errors end.
"""

from __future__ import annotations

import asyncio
import logging

from pdserve.clock import Clock
from pdserve.errors import IncompatiblePeer, ServingError, Unauthenticated
from pdserve.ids import new_boot_id
from router.core.config import SessionConfig
from router.core.fleet import Fleet, Worker
from router.core.messages import StatusReport
from router.core.session import WorkerSession
from router.core.worker_events import WorkerEvents
from router.metrics import RouterMetrics
from scheduling.routing import Role

log = logging.getLogger(__name__)


class SessionKeeper:
    """Puts workers into the fleet and takes lost ones out. Belongs to one event loop."""

    def __init__(
        self,
        secret: str,
        config: SessionConfig,
        fleet: Fleet,
        events: WorkerEvents,
        metrics: RouterMetrics,
        clock: Clock,
    ) -> None:
        self.changed = asyncio.Event()  # a worker came or went
        self.stopping = False  # a lost worker is no news any more
        self._secret = secret
        self._config = config
        self._fleet = fleet
        self._events = events
        self._metrics = metrics
        self._clock = clock
        self._boot_id = new_boot_id()
        self._unseen: set[str] = set()  # addresses never connected: the cluster is not complete
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def expect(self, address: str) -> None:
        """Begin to connect; nothing to do when it is known."""
        if address not in self._tasks:
            self._unseen.add(address)
            self._tasks[address] = asyncio.create_task(self._keep(address), name=f"session to {address}")

    async def forget(self, address: str) -> None:
        """Expect it no more; what runs on it ends UNAVAILABLE."""
        task = self._tasks.pop(address, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._unseen.discard(address)
        self._fleet.forget(address)

    async def close(self) -> None:
        """End every session. Safe to repeat."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()

    def what_is_missing(self) -> str:
        """Why the workers cannot serve; empty when they can."""
        if self._unseen:
            return f"{len(self._unseen)} of {len(self._tasks)} workers have not answered yet"
        return "" if self._fleet.has(Role.DECODE) else f"no decode worker is up{self._fleet.lost_in_words()}"

    async def _keep(self, address: str) -> None:
        """Connect, serve, and again."""
        delay_s, said = self._config.reconnect_min_s, ""
        while True:
            session = WorkerSession(address, self._secret, self._boot_id, self._config)
            try:
                worker = self._fleet.admit(await session.connect(), session)
                delay_s, said = self._config.reconnect_min_s, ""
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
            delay_s = min(2 * delay_s, self._config.reconnect_max_s)

    async def _serve(self, worker: Worker) -> None:
        """Everything one live worker says, until it is lost."""
        identity = worker.identity
        log.info("worker %s (%s, %s) is up at %s", worker.id, identity.role.value, identity.device, identity.address)
        self._unseen.discard(identity.address)
        self.changed.set()
        try:
            async for event in worker.session.events():
                worker.heard_s = self._clock.now()
                if isinstance(event, StatusReport):
                    worker.note_status(event, worker.heard_s)
                else:
                    self._events.handle(worker, event)
        except ServingError as error:
            log.warning("worker %s is lost: %s", worker.id, error.message)
        finally:
            self._metrics.worker_lost(worker.snapshot())
            self._fleet.remove(worker)
            self._events.worker_lost(worker)
            self.changed.set()
            self._tell_what_is_left(worker)

    def _tell_what_is_left(self, lost: Worker) -> None:
        """In the log, when it was the last one of its role."""
        if self.stopping or self._fleet.has(lost.identity.role):
            return
        if lost.identity.role is Role.DECODE:
            log.error(
                "%s: every request is refused (UNAVAILABLE, 503); a broken connection is made again, "
                "a worker that ended is not started again: restart the server",
                self.what_is_missing(),
            )
        elif self._fleet.has(Role.DECODE):
            log.warning("no prefill worker is up: decode workers compute the prompts")
