"""A worker: the engine thread, both ends of the handoff, and the router's session, glued on one event loop.

session ── Submit/Abort/Renew ──> Worker ── Command ──> engine thread
session <── StepOutput/Failed ─── Worker <── Report ─── engine thread
                                  Worker <── Notice ─── handoff source / target
"""

from __future__ import annotations

import asyncio
import logging

from engine.core import Commit, EngineCore, Quarantine, Release, Report, Room
from engine.thread import EngineThread
from kv_transfer.notices import Committed, Failed, Freed, Notice, Stopped
from kv_transfer.source import HandoffSource
from kv_transfer.target import HandoffTarget
from pdserve.clock import Clock
from pdserve.v1 import worker_pb2 as pb
from pdserve.wire import key_from_proto
from scheduling.batching import SequenceUpdate
from scheduling.latency import OnlineLatencyEstimator
from scheduling.sequence import SequenceMode
from worker.accounting import StepBooks, count_no_failures, count_transfer
from worker.constraints import ConstraintDesk
from worker.intake import Intake
from worker.outbox import Outbox
from worker.policy import RolePolicy
from worker.status import status_message
from worker.step_message import StepMessage
from worker.telemetry import Telemetry
from worker.tracked import Tracked, TrackedSequences

log = logging.getLogger(__name__)

STATUS_PERIOD_S = 1.0


class Worker:
    """One worker, whatever its role. All methods run on the event loop."""

    def __init__(
        self,
        policy: RolePolicy,
        engine: EngineCore,
        source: HandoffSource,
        target: HandoffTarget,
        notices: asyncio.Queue[Notice],
        clock: Clock,
        constraints: ConstraintDesk,
    ) -> None:
        self.telemetry = Telemetry()
        self._books = StepBooks(self.telemetry, policy.role)
        count_no_failures(self.telemetry)
        self.latency = OnlineLatencyEstimator()
        self.load = engine.load()  # as it was when the engine counted it last
        self.status = status_message(self)  # the last one; never changed, replaced every second
        self.died: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._source, self._target, self._notices = source, target, notices
        self._thread = EngineThread(engine, asyncio.get_running_loop(), self._on_report, self._on_death)
        block_size = engine.scheduler.blocks.block_size
        self._sequences = TrackedSequences(self._thread, source, target, clock, block_size)
        self._tracked = self._sequences.by_key
        self._intake = Intake(policy, self._sequences, self._thread, constraints, self.telemetry, clock)
        self._outboxes: set[Outbox] = set()
        self._tasks: list[asyncio.Task[None]] = []

    # ---- life ----

    def start(self) -> None:
        self._thread.start()
        self._tasks = [asyncio.create_task(self._watch_notices()), asyncio.create_task(self._keep_house())]

    async def stop(self) -> None:
        """Cancel everything, close the pairs, end the engine thread."""
        self._sequences.abort_all("worker stops")
        await self._source.close()
        await self._target.close()
        await self._intake.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._thread.stop)
        for outbox in list(self._outboxes):
            outbox.close()

    @property
    def num_sequences(self) -> int:
        return len(self._tracked)

    async def idle(self) -> None:
        """Return when nothing of any sequence is left here."""
        await self._sequences.idle()

    async def _keep_house(self) -> None:
        """Every second: leases that ended, and the status for the router."""
        while True:
            await asyncio.sleep(STATUS_PERIOD_S)
            self._sequences.fail_expired()
            self.status = status_message(self)
            message = pb.WorkerMessage(status=self.status)
            for outbox in self._outboxes:
                outbox.put(message)

    # ---- session ----

    def open_session(self) -> Outbox:
        outbox = Outbox()
        self._outboxes.add(outbox)
        return outbox

    def close_session(self, outbox: Outbox) -> None:
        """The router is gone: everything it asked for is cancelled."""
        outbox.closed = True
        self._outboxes.discard(outbox)
        self._sequences.abort_all("router session ended", outbox)

    def on_message(self, message: pb.RouterMessage, outbox: Outbox) -> None:
        """One message of a session."""
        match message.WhichOneof("message"):
            case "submit":
                self._intake.submit(message.submit, outbox)
            case "abort":
                self._sequences.abort(key_from_proto(message.abort.key), "aborted by the router")
            case "renew":
                for key in message.renew.keys:
                    self._sequences.renew(key_from_proto(key))
            case kind:
                log.warning("ignored %s from the router", kind)

    # ---- engine ----

    def _on_death(self, error: BaseException) -> None:
        if not self.died.done():
            self.died.set_result(error)

    def _on_report(self, report: Report) -> None:
        self.load = report.load or self.load
        for rejected in report.rejected:
            self._sequences.fail(rejected.key, rejected.error)
        for room in report.room:
            self._on_room(room)
        messages: dict[Outbox, StepMessage] = {}
        for update in report.updates:
            tracked = self._tracked.get(update.key)
            if tracked is None or tracked.told_end:
                continue
            message = messages.get(tracked.outbox)
            if message is None:
                message = messages[tracked.outbox] = StepMessage()
            if update.is_plain:
                message.add_plain(update)
            else:
                self._on_update(update, tracked, message)
        for outbox, message in messages.items():
            if not message.is_empty:
                outbox.put(message.to_proto())
        if report.stats is not None:
            self._books.count(report.stats)
            self.latency.observe(*report.stats.shape, report.stats.seconds)

    def _on_room(self, room: Room) -> None:
        self._target.on_room(room.key, room.block_ids, room.skip)
        tracked = self._tracked.get(room.key)
        if tracked is not None:
            tracked.outbox.tell_reserved(room.key)

    def _on_update(self, update: SequenceUpdate, tracked: Tracked, message: StepMessage) -> None:
        if update.error is not None:
            self._sequences.fail(update.key, update.error)
            return
        ready = update.ready_blocks
        if ready is not None:
            self._source.on_blocks_ready(update.key, ready.first, ready.block_ids, ready.generations)
        if update.started_after_s is not None:
            message.add_started(update)
        if update.token is not None:
            message.add(update)
            if tracked.mode is SequenceMode.PREFILL and update.finish_reason is None:
                self._source.on_first_token(update.key, update.token.token_id)
        if update.finish_reason is not None:
            self._sequences.finish(update.key, tracked)

    # ---- handoff ----

    async def _watch_notices(self) -> None:
        while True:
            notice = await self._notices.get()
            try:
                self._on_notice(notice)
            except Exception as error:
                self._on_death(error)
                raise

    def _on_notice(self, notice: Notice) -> None:
        tracked = self._tracked.get(notice.key)
        match notice:
            case Stopped(key):
                self._thread.put(Quarantine(key))
            case Freed(key, committed):
                self._thread.put(Release(key))
                if tracked is not None and committed:
                    tracked.outbox.tell_freed(key)
                self._sequences.forget(key)
            case Committed(key, first_token_id):
                self._thread.put(Commit(key, first_token_id))
                if tracked is not None:
                    tracked.handed = True
                    tracked.outbox.tell_committed(notice)
                count_transfer(self.telemetry, self._target.identity.worker_id, notice)
            case Failed(key, error):
                self.telemetry.add("kv_transfer_failures_total", reason=type(error).__name__)
                if tracked is not None and not tracked.told_end:
                    tracked.told_end = True
                    tracked.outbox.tell_failed(key, error)
