"""What workers say of running requests: tokens, in order to their streams; handoffs, failures and losses.

    token 1 from P, tokens 2.. from D (without P: every token from D) ──> order ──> stream
    a failure, a lost worker, a gap that stays open ──> the end

Nothing here waits.
"""

from __future__ import annotations

import asyncio

from pdserve.clock import Clock
from pdserve.errors import InvariantViolation, PeerLost
from pdserve.ids import SequenceKey
from pdserve.sampling import FinishReason
from router.core.active import ActiveRequest
from router.core.config import CoreConfig
from router.core.fleet import Worker
from router.core.messages import (
    HandoffReport,
    PlainTokens,
    Progress,
    SequenceDelta,
    SequenceFailure,
    StepReport,
    WorkerEvent,
)
from router.core.running import RunningRequests
from router.metrics import RouterMetrics
from scheduling.prefix_directory import PrefixDirectory


class WorkerEvents:
    """The workers' side of the running requests."""

    def __init__(
        self, config: CoreConfig, running: RunningRequests, prefixes: PrefixDirectory, metrics: RouterMetrics,
        clock: Clock,
    ) -> None:  # fmt: skip
        """`prefixes` are told what came where, and where less was cached than was expected."""
        self._config = config
        self._prefixes = prefixes
        self._running = running
        self._by_attempt = running.by_attempt
        self._metrics = metrics
        self._clock = clock
        self.generated_tokens = 0  # since the start, for the stats line

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
        for active in [one for one in self._running if worker in one.parties]:
            lost = PeerLost(f"{worker.role.value} worker {worker.id} was lost")
            if worker is active.decode or active.marks.first_s is None:
                self._running.end(active, lost)
            elif not active.committed and active.timers.peer is None:
                # Token 1 is out; every byte may have arrived too. D will say so, or it is over.
                loop = asyncio.get_running_loop()
                active.timers.peer = loop.call_later(self._config.peer_grace_s, self._running.end, active, lost)

    def _current(self, worker: Worker, key: SequenceKey) -> ActiveRequest | None:
        """The running request that this is about; None (counted) when it is over, another attempt's or another's."""
        active = self._running.by_id.get(key.request_id)
        if active is None or active.key != key or worker not in active.parties:
            self._metrics.stale("sequence")
            return None
        return active

    # ---- tokens ----

    def _on_plain(self, worker: Worker, plain: PlainTokens, now_s: float) -> None:
        """Nearly every token there is, so the usual case takes a short way; it does what `_on_delta` would."""
        for attempt, index, token_id in zip(plain.attempts, plain.indexes, plain.token_ids, strict=True):
            active = self._by_attempt.get(attempt)
            if active is None:
                self._metrics.stale("sequence")
            elif index and worker is active.decode and active.decode_goes_on and active.order.accept_next(index):
                gap_s = now_s - active.marks.times[-1]
                active.marks.left(index + 1, now_s)
                active.answer.append(token_id)
                active.stream.put_one(token_id)
                self.generated_tokens += 1
                self._metrics.more_tokens(gap_s, 1)
            else:
                self._on_delta(worker, SequenceDelta(active.key, index, (token_id,), (), None, None), now_s)

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
            self._note_commit(active)
        try:
            ready = active.order.accept(delta)
        except InvariantViolation as error:
            self._running.end(active, error)
            return
        for one in ready:
            self._deliver(active, one, now_s)
        if not active.ended:
            self._watch_gap(active)

    def _note_times(self, active: ActiveRequest, worker: Worker, delta: SequenceDelta) -> None:
        assert delta.times is not None
        if worker is not active.computing:
            active.marks.decode = active.marks.decode or delta.times
        elif active.marks.prompt is None:
            active.marks.prompt = delta.times
            active.cached_tokens = delta.times.cached_tokens
            self._prefixes.missed(worker.id, active.expected_cached_tokens - active.cached_tokens)
            self._metrics.cache_hit(delta.times.cached_tokens)

    def _deliver(self, active: ActiveRequest, delta: SequenceDelta, now_s: float) -> None:
        """In order and new: to the client."""
        if active.ended:
            return
        if delta.token_ids:
            before_s = active.marks.times[-1] if active.marks.times else None
            active.marks.left(delta.end, now_s)
            active.answer.extend(delta.token_ids)
            active.stream.put(delta, active.cached_tokens)
            self.generated_tokens += len(delta.token_ids)
            if before_s is None:
                self._metrics.first_token(now_s - active.marks.received_s)
            else:
                self._metrics.more_tokens(now_s - before_s, len(delta.token_ids))
        if delta.finish_reason is FinishReason.ABORT:  # nobody asked for it, or we would not be here
            self._running.end(active, PeerLost("the worker gave the sequence up"))
        elif delta.finish_reason is not None:
            self._running.end(active, active.finished(delta.finish_reason, delta.end, now_s), now_s)

    def _watch_gap(self, active: ActiveRequest) -> None:
        """Each missing token has its own time: one that came late does not shorten the next one's."""
        timers, missing = active.timers, active.order.next_index
        if timers.gap is not None and not (active.order.has_gap and timers.gap_index == missing):
            timers.gap.cancel()
            timers.gap = None
        if timers.gap is None and active.order.has_gap:
            lost = PeerLost(f"token {missing} did not come, later ones did")
            loop = asyncio.get_running_loop()
            timers.gap = loop.call_later(self._config.gap_timeout_s, self._running.end, active, lost)
            timers.gap_index = missing

    # ---- handoffs and failures ----

    def _note_commit(self, active: ActiveRequest) -> None:
        """The decode worker said so, or its tokens prove it."""
        if active.prefill is not None and not active.committed:
            active.committed = True
            self._prefixes.note(active.decode.id, active.prefix_keys)
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
        self._running.end(active, failure.error)

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
            self._note_commit(active)
            active.marks.committed_s = now_s
            active.marks.transfer = report.transfer
            if report.transfer is not None:
                self._metrics.transferred(report.transfer.seconds)
