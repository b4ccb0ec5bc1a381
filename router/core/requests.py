"""The life of every running request: placed, dispatched, streamed in order, ended once.

    submit ──> placed on P and D, both told side by side ──> token 1 from P, tokens 2.. from D ──> end
                                                                 (without P: every token from D)

Events of workers come in, messages to workers and events of streams go out; nothing here waits. `_end` is the only way
out of a life: whatever ended it, every worker that may still hold something of it is told to let go.
"""

from __future__ import annotations

import asyncio
import secrets

from pdserve.clock import Clock
from pdserve.errors import Cancelled, DeadlineExceeded, InvariantViolation, PeerLost, ServingError, Stopping
from pdserve.ids import SequenceKey
from pdserve.sampling import FinishReason
from router.core.active import ActiveRequest, Timers
from router.core.admission import admit
from router.core.config import CoreConfig
from router.core.dispatch import dispatch
from router.core.ending import Ending, note, record_of, record_of_rejected, release
from router.core.fleet import Fleet, Worker
from router.core.messages import (
    HandoffReport,
    PlainTokens,
    Progress,
    SequenceDelta,
    SequenceFailure,
    StepReport,
    WorkerEvent,
)
from router.core.order import TokenOrder
from router.core.prediction import predict
from router.core.stream import RequestStream
from router.core.timing import Marks
from router.interface import Finished, RouterRequest
from router.metrics import RouterMetrics
from router.record import RecordSink
from scheduling.routing import RoutingPolicy


class Requests:
    """Every running request. Belongs to one event loop; no method waits."""

    def __init__(
        self, config: CoreConfig, fleet: Fleet, policy: RoutingPolicy, metrics: RouterMetrics, clock: Clock,
        sinks: tuple[RecordSink, ...] = (),
    ) -> None:  # fmt: skip
        """`sinks` hear of every end, as the metrics do."""
        self._config = config
        self._fleet = fleet
        self._policy = policy
        self._metrics = metrics
        self._sinks: tuple[RecordSink, ...] = (metrics, *sinks)
        self._clock = clock
        self._running: dict[str, ActiveRequest] = {}
        self._by_attempt: dict[int, ActiveRequest] = {}  # the same requests
        # One number for every dispatch, never one per request: an id that is used again at once, or by the next router,
        # must not meet what is left of the last sequence under that name.
        self._last_attempt = secrets.randbelow(2**31)
        self._idle = asyncio.Event()
        self._idle.set()
        self.generated_tokens = 0  # since the start, for the stats line

    def __len__(self) -> int:
        return len(self._running)

    # ---- the front's side ----

    def submit(self, request: RouterRequest) -> RequestStream:
        """Place a request and send it out. Errors: as `RouterCore.submit`; nothing is kept then."""
        now_s = self._clock.now()
        try:
            active = self._admit(request, now_s)
        except ServingError as error:
            self.reject(request, error)
            raise
        self._running[request.request_id] = self._by_attempt[active.key.attempt] = active
        self._idle.clear()
        self._metrics.accepted(len(request.prompt_token_ids))
        loop = asyncio.get_running_loop()
        active.timers.deadline = loop.call_later(request.deadline_s - now_s, self._deadline_passed, active)
        dispatch(active, now_s, self._config.routing.growth_tokens)
        return active.stream

    def reject(self, request: RouterRequest, error: ServingError) -> None:
        """Note that a request is not taken."""
        note(self._sinks, record_of_rejected(request, error, self._clock.now()), error)

    def abort(self, request_id: str, tenant: str) -> bool:
        """End it with reason ABORT; False when this tenant has no such request."""
        active = self._running.get(request_id)
        if active is None or active.request.tenant != tenant:
            return False
        now_s = self._clock.now()
        self._end(active, active.finished(FinishReason.ABORT, active.order.next_index, now_s), now_s)
        return True

    async def wait_idle(self) -> None:
        """Until nothing runs."""
        await self._idle.wait()

    def fail_all(self, reason: str) -> None:
        """End everything that runs, UNAVAILABLE: the router stops."""
        for active in list(self._running.values()):
            self._end(active, Stopping(reason))

    def _admit(self, request: RouterRequest, now_s: float) -> ActiveRequest:
        taken = admit(request, self._running, self._fleet, self._policy, self._config, now_s)
        handle = _Handle(self)
        handle.active = ActiveRequest(
            request=request,
            key=self._new_key(request.request_id),
            attempts=1,
            prefill=taken.prefill,
            decode=taken.decode,
            marks=Marks(request.received_s, predict(taken.prefill, taken.decode, len(request.prompt_token_ids))),
            order=TokenOrder(self._config.max_ahead_tokens),
            timers=Timers(),
            stream=RequestStream(handle),
        )
        return handle.active

    def _new_key(self, request_id: str) -> SequenceKey:
        self._last_attempt = self._last_attempt % 0xFFFFFFFF + 1  # uint32 on the wire, never 0
        return SequenceKey(request_id, self._last_attempt)

    # ---- the workers' side ----

    def handle(self, worker: Worker, event: WorkerEvent) -> None:
        """One message of a live worker; a status is none of our business."""
        if isinstance(event, StepReport):
            now_s = self._clock.now()
            before = self.generated_tokens
            for started in event.started:
                waiting = self._by_attempt.get(started.attempt)
                if waiting is not None and worker is waiting.computing:
                    waiting.marks.prompt_started(started.queue_s, now_s)
            for delta in event.deltas:
                self._on_delta(worker, delta, now_s)
            self._on_plain(worker, event.plain, now_s)
            self._metrics.generated(self.generated_tokens - before)
        elif isinstance(event, SequenceFailure):
            self._on_failure(worker, event)
        elif isinstance(event, HandoffReport):
            self._on_handoff(worker, event)

    def worker_lost(self, worker: Worker) -> None:
        """Its requests end, their other workers let go; requests that no longer need it go on."""
        for active in [one for one in self._running.values() if worker in one.parties]:
            lost = PeerLost(f"{worker.role.value} worker {worker.id} was lost")
            if worker is active.decode or active.marks.first_s is None:
                self._end(active, lost)
            elif not active.committed and active.timers.peer is None:
                # Token 1 is out; every byte may have arrived too. D will say so, or it is over.
                loop = asyncio.get_running_loop()
                active.timers.peer = loop.call_later(self._config.peer_grace_s, self._end, active, lost)

    def check_stalled(self) -> None:
        """Cut off clients that have stopped reading; called by housekeeping."""
        now_s = self._clock.now()
        for active in list(self._running.values()):
            stalled_s = active.stalled_for_s(self._config.stall_tokens, now_s)
            if stalled_s >= self._config.stall_timeout_s:
                unread = active.stream.unread_tokens
                self._end(active, Cancelled(f"the client left {unread:,} tokens unread for {stalled_s:.0f} s"))

    def check(self) -> None:
        """Every running request is watched, unended and known to its workers."""
        assert list(self._by_attempt.values()) == list(self._running.values())
        for request_id, active in self._running.items():
            assert active.key.request_id == request_id and not active.ended
            assert active.timers.deadline is not None, f"{request_id} has no deadline"
            active.order.check()
        for worker in self._fleet:
            for key in worker.holding:
                known = self._running.get(key.request_id)
                assert known is None or known.key != key or worker in known.parties

    def _current(self, worker: Worker, key: SequenceKey) -> ActiveRequest | None:
        """The running request that this is about; None (counted) when it is over, another attempt's or another's."""
        active = self._running.get(key.request_id)
        if active is None or active.key != key or worker not in active.parties:
            self._metrics.stale("sequence")
            return None
        return active

    def _on_delta(self, worker: Worker, delta: SequenceDelta, now_s: float) -> None:
        if delta.finish_reason is not None:
            worker.release(delta.key)
        active = self._current(worker, delta.key)
        if active is None:
            return
        if not active.may_send(worker, delta.first_index):
            self._metrics.stale("foreign_token")
            return
        if active.order.next_index == 0 or delta.times is not None:
            worker.settle(delta.key, now_s, computed=True)
        if delta.times is not None:
            self._note_times(active, worker, delta)
        if worker is active.decode:
            self._stop_peer_timer(active)
        try:
            ready = active.order.accept(delta)
        except InvariantViolation as error:
            self._end(active, error)
            return
        for one in ready:
            self._deliver(active, one, now_s)
        if not active.ended:
            self._watch_gap(active)

    def _on_plain(self, worker: Worker, plain: PlainTokens, now_s: float) -> None:
        """Nearly every token there is, so the usual case takes a short way; it does what `_on_delta` would."""
        for attempt, index, token_id in zip(plain.attempts, plain.indexes, plain.token_ids, strict=True):
            active = self._by_attempt.get(attempt)
            if active is None:
                self._metrics.stale("sequence")
            elif index and worker is active.decode and active.decode_goes_on and active.order.accept_next(index):
                gap_s = now_s - active.marks.times[-1]
                active.marks.left(index + 1, now_s)
                active.stream.put_one(token_id)
                self.generated_tokens += 1
                self._metrics.more_tokens(gap_s, 1)
            else:
                self._on_delta(worker, SequenceDelta(active.key, index, (token_id,), (), None, None), now_s)

    def _note_times(self, active: ActiveRequest, worker: Worker, delta: SequenceDelta) -> None:
        assert delta.times is not None
        if worker is not active.computing:
            active.marks.decode = active.marks.decode or delta.times
        elif active.marks.prompt is None:
            active.marks.prompt = delta.times
            active.cached_tokens = delta.times.cached_tokens
            self._metrics.cache_hit(delta.times.cached_tokens)

    def _deliver(self, active: ActiveRequest, delta: SequenceDelta, now_s: float) -> None:
        """In order and new: to the client."""
        if active.ended:
            return
        if delta.token_ids:
            before_s = active.marks.times[-1] if active.marks.times else None
            active.marks.left(delta.end, now_s)
            active.stream.put(delta, active.cached_tokens)
            self.generated_tokens += len(delta.token_ids)
            if before_s is None:
                self._metrics.first_token(now_s - active.marks.received_s)
            else:
                self._metrics.more_tokens(now_s - before_s, len(delta.token_ids))
        if delta.finish_reason is FinishReason.ABORT:  # nobody asked for it, or we would not be here
            self._end(active, PeerLost("the worker gave the sequence up"))
        elif delta.finish_reason is not None:
            self._end(active, active.finished(delta.finish_reason, delta.end, now_s), now_s)

    def _watch_gap(self, active: ActiveRequest) -> None:
        """Each missing token has its own time: one that came late does not shorten the next one's."""
        timers, missing = active.timers, active.order.next_index
        if timers.gap is not None and not (active.order.has_gap and timers.gap_index == missing):
            timers.gap.cancel()
            timers.gap = None
        if timers.gap is None and active.order.has_gap:
            lost = PeerLost(f"token {missing} did not come, later ones did")
            loop = asyncio.get_running_loop()
            timers.gap = loop.call_later(self._config.gap_timeout_s, self._end, active, lost)
            timers.gap_index = missing

    def _stop_peer_timer(self, active: ActiveRequest) -> None:
        active.committed = active.prefill is not None  # its tokens prove it
        if active.timers.peer is not None:
            active.timers.peer.cancel()
            active.timers.peer = None

    def _on_failure(self, worker: Worker, failure: SequenceFailure) -> None:
        worker.release(failure.key)
        active = self._current(worker, failure.key)
        if active is None:
            return
        if worker is active.prefill and active.committed and active.marks.first_s is not None:
            return  # it is no longer needed
        self._end(active, failure.error)

    def _on_handoff(self, worker: Worker, report: HandoffReport) -> None:
        if report.progress is Progress.FREED:
            worker.release(report.key)
            return
        now_s = self._clock.now()
        worker.settle(report.key, now_s)
        active = self._current(worker, report.key)
        if active is None or worker is not active.decode or active.prefill is None:
            return
        if report.progress is Progress.RESERVED:
            active.marks.reserved_s = active.marks.reserved_s or now_s
        elif active.marks.committed_s is None:
            self._stop_peer_timer(active)
            active.marks.committed_s = now_s
            active.marks.transfer = report.transfer
            if report.transfer is not None:
                self._metrics.transferred(report.transfer.seconds)

    # ---- the end ----

    def _deadline_passed(self, active: ActiveRequest) -> None:
        limit_s = active.request.deadline_s - active.request.received_s
        self._end(active, DeadlineExceeded(f"not finished within {limit_s:.3f} s"))

    def cancel(self, active: ActiveRequest) -> None:
        """The reader wants no more."""
        if not active.ended:
            self._end(active, Cancelled("cancelled by the client"))

    def finish(self, active: ActiveRequest, num_tokens: int) -> Finished:
        """The reader has enough: reason STOP; also right when the request has just ended by itself."""
        now_s = self._clock.now()
        result = active.finished(FinishReason.STOP, num_tokens, now_s)
        if not active.ended:
            self._end(active, result, now_s)
        return result

    def _end(self, active: ActiveRequest, outcome: Ending, now_s: float | None = None) -> None:
        """The one way out: timers stopped, workers released, counted, the client told."""
        assert not active.ended, f"{active.key} ended twice"
        active.ended = True
        del self._running[active.key.request_id], self._by_attempt[active.key.attempt]
        if not self._running:
            self._idle.set()
        active.timers.cancel()
        release(active, outcome, self._config.freed_grace_s)
        if active.order.duplicates:
            self._metrics.stale("duplicate_token", active.order.duplicates)
        try:
            note(self._sinks, record_of(active, outcome, self._clock.now() if now_s is None else now_s), outcome)
        finally:
            active.stream.end(outcome)  # whatever happens to the books, the client is told


class _Handle:
    """What a stream may ask for: the end of its own request."""

    active: ActiveRequest

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    def cancel(self) -> None:
        self._requests.cancel(self.active)

    def finish(self, num_tokens: int) -> Finished:
        return self._requests.finish(self.active, num_tokens)
