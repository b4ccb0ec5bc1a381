"""A worker: the engine thread, both ends of the handoff, and the router's session, glued on one event loop.

session ── Submit/Abort/Renew ──> Worker ── Command ──> engine thread
session <── StepOutput/Failed ─── Worker <── Report ─── engine thread
                                  Worker <── Notice ─── handoff source / target
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial

from engine.core import Commit, EngineCore, Quarantine, Release, Report, Room, Submit
from engine.thread import EngineThread
from kv_transfer.notices import Committed, Failed, Freed, Notice, PeerAddress, Stopped
from kv_transfer.source import HandoffSource
from kv_transfer.target import HandoffTarget
from pdserve.clock import Clock
from pdserve.errors import IncompatiblePeer, LeaseExpired, ServingError
from pdserve.ids import SequenceKey
from pdserve.v1 import worker_pb2 as pb
from pdserve.wire import key_from_proto, key_to_proto, sampling_from_proto
from scheduling.batching import SequenceUpdate
from scheduling.latency import OnlineLatencyEstimator
from scheduling.lease import LEASE_S, LeaseTable
from scheduling.sequence import Sequence, SequenceMode
from worker.accounting import StepBooks, committed_event, count_no_failures, count_transfer
from worker.constraints import ConstraintDesk
from worker.outbox import Outbox
from worker.policy import RolePolicy
from worker.status import status_message
from worker.step_message import StepMessage
from worker.telemetry import Telemetry

log = logging.getLogger(__name__)

STATUS_PERIOD_S = 1.0

_MODES = {
    pb.SEQUENCE_MODE_PREFILL: SequenceMode.PREFILL,
    pb.SEQUENCE_MODE_DECODE: SequenceMode.DECODE,
    pb.SEQUENCE_MODE_FULL: SequenceMode.FULL,
}


@dataclass(slots=True)
class Tracked:
    """What the worker remembers of a sequence until nothing of it is left here."""

    mode: SequenceMode
    outbox: Outbox
    handed: bool = False  # DECODE: committed; its handoff is over
    told_end: bool = False  # the router was told a finish reason or a failure


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
        self.policy = policy
        self.telemetry = Telemetry()
        self._books = StepBooks(self.telemetry, policy.role)
        count_no_failures(self.telemetry)
        self.latency = OnlineLatencyEstimator()
        self.load = engine.load()  # as it was when the engine counted it last
        self.status = status_message(self)  # the last one; never changed, replaced every second
        self.died: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._source, self._target, self._notices, self._clock = source, target, notices, clock
        self._block_size = engine.scheduler.blocks.block_size
        self._thread = EngineThread(engine, asyncio.get_running_loop(), self._on_report, self._on_death)
        self._tracked: dict[SequenceKey, Tracked] = {}
        self._leases: LeaseTable[SequenceKey] = LeaseTable(clock)
        self._outboxes: set[Outbox] = set()
        self._emptied = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._constraints = constraints
        self._compiling: set[asyncio.Task[None]] = set()

    # ---- life ----

    def start(self) -> None:
        self._thread.start()
        self._tasks = [asyncio.create_task(self._watch_notices()), asyncio.create_task(self._keep_house())]

    async def stop(self) -> None:
        """Cancel everything, close the pairs, end the engine thread."""
        for key in list(self._tracked):
            self._abort(key, "worker stops")
        await self._source.close()
        await self._target.close()
        self._constraints.close()
        tasks = [*self._tasks, *self._compiling]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._thread.stop)
        for outbox in list(self._outboxes):
            outbox.close()

    @property
    def num_sequences(self) -> int:
        return len(self._tracked)

    async def idle(self) -> None:
        """Return when nothing of any sequence is left here."""
        while self._tracked:
            self._emptied.clear()
            await self._emptied.wait()

    # ---- session ----

    def open_session(self) -> Outbox:
        outbox = Outbox()
        self._outboxes.add(outbox)
        return outbox

    def close_session(self, outbox: Outbox) -> None:
        """The router is gone: everything it asked for is cancelled."""
        outbox.closed = True
        self._outboxes.discard(outbox)
        for key, tracked in list(self._tracked.items()):
            if tracked.outbox is outbox:
                self._abort(key, "router session ended")

    def on_message(self, message: pb.RouterMessage, outbox: Outbox) -> None:
        """One message of a session."""
        match message.WhichOneof("message"):
            case "submit":
                self._submit(message.submit, outbox)
            case "abort":
                self._abort(key_from_proto(message.abort.key), "aborted by the router")
            case "renew":
                for key in message.renew.keys:
                    self._leases.renew(key_from_proto(key))
            case kind:
                log.warning("ignored %s from the router", kind)

    def _submit(self, submit: pb.SubmitSequence, outbox: Outbox) -> None:
        key = key_from_proto(submit.key)
        if key in self._tracked:
            self.telemetry.add("stale_messages_total", kind="submit")
            return
        mode = _MODES.get(submit.mode)
        if mode is None or mode not in self.policy.admits:
            error = IncompatiblePeer(f"a {self.policy.role} worker does not take mode {submit.mode}")
            self._tell_failed(outbox, key, error)
            return
        now, sampling = self._clock.now(), sampling_from_proto(submit.sampling)
        make = partial(
            Sequence, key=key, mode=mode, prompt_token_ids=submit.prompt_token_ids,
            output_token_ids=submit.output_token_ids, sampling=sampling, salt=submit.tenant, priority=submit.priority,
            arrival_s=now, deadline_s=now + submit.deadline_left_s,
        )  # fmt: skip
        tracked = self._tracked[key] = Tracked(mode, outbox)
        self._leases.grant(key)
        num_tokens = len(submit.prompt_token_ids) + len(submit.output_token_ids)
        if mode is SequenceMode.PREFILL:
            peer = PeerAddress(submit.peer.worker_id, submit.peer.boot_id, submit.peer.address)
            self._source.begin(key, peer, -(-num_tokens // self._block_size))
        elif mode is SequenceMode.DECODE:
            self._target.expect(key, submit.peer.boot_id)
        if sampling.constraint is None:
            self._thread.put(Submit(make()))
        else:
            compiling = asyncio.create_task(self._submit_constrained(key, tracked, make))
            self._compiling.add(compiling)
            compiling.add_done_callback(self._compiling.discard)

    async def _submit_constrained(self, key: SequenceKey, tracked: Tracked, make: partial[Sequence]) -> None:
        """The handoff goes ahead meanwhile; a sequence that ended meanwhile never reaches the engine."""
        try:
            sequence = make(matcher=await self._constraints.matcher(make.keywords["sampling"]))
            if self._tracked.get(key) is tracked and not tracked.told_end:
                self._thread.put(Submit(sequence))
        except ServingError as error:
            if self._tracked.get(key) is tracked:
                self._fail(key, error)

    def _abort(self, key: SequenceKey, reason: str) -> None:
        """End a sequence here; its blocks are freed at once, or as soon as no transfer can touch them."""
        tracked = self._tracked.get(key)
        if tracked is None:
            return
        tracked.told_end = True
        if not self._end_handoff(key, tracked, reason):
            self._thread.put(Release(key))
            self._forget(key)

    def _end_handoff(self, key: SequenceKey, tracked: Tracked, reason: str) -> bool:
        """Abort the sequence's handoff; False when it has none, so that its blocks are nobody else's concern."""
        if tracked.mode is SequenceMode.PREFILL:
            return self._source.abort(key, reason)
        return tracked.mode is SequenceMode.DECODE and not tracked.handed and self._target.abort(key, reason)

    def _forget(self, key: SequenceKey) -> None:
        self._tracked.pop(key, None)
        self._leases.release(key)
        if not self._tracked:
            self._emptied.set()

    # ---- engine ----

    def _on_death(self, error: BaseException) -> None:
        if not self.died.done():
            self.died.set_result(error)

    def _on_report(self, report: Report) -> None:
        self.load = report.load or self.load
        for rejected in report.rejected:
            self._fail(rejected.key, rejected.error)
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
            event = pb.HandoffEvent(key=key_to_proto(room.key), progress=pb.HANDOFF_PROGRESS_RESERVED)
            self._tell_progress(tracked, event)

    def _on_update(self, update: SequenceUpdate, tracked: Tracked, message: StepMessage) -> None:
        if update.error is not None:
            self._fail(update.key, update.error)
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
            self._finish(update.key, tracked)

    def _finish(self, key: SequenceKey, tracked: Tracked) -> None:
        """The engine ended it; a prefill's blocks wait until its handoff is called off."""
        tracked.told_end = True
        if not self._end_handoff(key, tracked, "finished"):
            self._thread.put(Release(key))
            self._forget(key)

    def _fail(self, key: SequenceKey, error: ServingError) -> None:
        tracked = self._tracked.get(key)
        if tracked is None:
            return
        if not tracked.told_end:
            self._tell_failed(tracked.outbox, key, error)
        self._abort(key, error.message)

    def _tell_failed(self, outbox: Outbox, key: SequenceKey, error: ServingError) -> None:
        failed = pb.SequenceFailed(
            key=key_to_proto(key), status=error.status.name, message=error.message, reason=type(error).__name__
        )
        outbox.put(pb.WorkerMessage(failed=failed))

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
                    self._tell_progress(
                        tracked, pb.HandoffEvent(key=key_to_proto(key), progress=pb.HANDOFF_PROGRESS_FREED)
                    )
                self._forget(key)
            case Committed(key, first_token_id):
                self._thread.put(Commit(key, first_token_id))
                if tracked is not None:
                    tracked.handed = True
                    self._tell_progress(tracked, committed_event(notice))
                count_transfer(self.telemetry, self._target.identity.worker_id, notice)
            case Failed(key, error):
                self.telemetry.add("kv_transfer_failures_total", reason=type(error).__name__)
                if tracked is not None and not tracked.told_end:
                    tracked.told_end = True
                    self._tell_failed(tracked.outbox, key, error)

    def _tell_progress(self, tracked: Tracked, event: pb.HandoffEvent) -> None:
        tracked.outbox.put(pb.WorkerMessage(handoff=event))

    # ---- housekeeping ----

    async def _keep_house(self) -> None:
        """Every second: leases that ended, and the status for the router."""
        while True:
            await asyncio.sleep(STATUS_PERIOD_S)
            for key in self._leases.expired():
                self._fail(key, LeaseExpired(f"not renewed for {LEASE_S:g} s"))
            self.status = status_message(self)
            message = pb.WorkerMessage(status=self.status)
            for outbox in self._outboxes:
                outbox.put(message)
