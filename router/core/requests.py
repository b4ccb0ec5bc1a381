"""What clients ask for: a request is placed on its workers and sent out, refused, or ended from their side.

    submit ──> placed on P and D, both told side by side ──> what the workers answer: worker_events.py
    cancel, finish, abort, a deadline, a client that stopped reading ──> the end: running.py

Nothing here waits.
"""

from __future__ import annotations

import asyncio
import secrets

from pdserve.clock import Clock
from pdserve.errors import Cancelled, DeadlineExceeded, ServingError
from pdserve.ids import SequenceKey
from pdserve.sampling import FinishReason
from router.core.active import ActiveRequest, Timers
from router.core.admission import Admission, admit
from router.core.config import CoreConfig
from router.core.dispatch import dispatch
from router.core.ending import note, record_of_rejected
from router.core.fleet import Fleet
from router.core.order import TokenOrder
from router.core.prediction import predict
from router.core.running import RunningRequests
from router.core.stream import RequestStream
from router.core.timing import Marks
from router.interface import Finished, RouterRequest
from router.metrics import RouterMetrics
from router.record import RecordSink
from scheduling.routing import RoutingPolicy


class Requests:
    """The clients' side of the running requests."""

    def __init__(
        self, config: CoreConfig, fleet: Fleet, policy: RoutingPolicy, running: RunningRequests,
        metrics: RouterMetrics, sinks: tuple[RecordSink, ...], clock: Clock,
    ) -> None:  # fmt: skip
        """`sinks` hear of what is not taken; the metrics are one of them."""
        self._config = config
        self._fleet = fleet
        self._policy = policy
        self._running = running
        self._metrics = metrics
        self._sinks = sinks
        self._clock = clock
        # One number for every dispatch, never one per request: an id that is used again at once, or by the next router,
        # must not meet what is left of the last sequence under that name.
        self._last_attempt = secrets.randbelow(2**31)

    def submit(self, request: RouterRequest) -> RequestStream:
        """Place a request and send it out. Errors: as `RouterCore.submit`; nothing is kept then."""
        now_s = self._clock.now()
        try:
            taken = admit(request, self._running.by_id, self._fleet, self._policy, self._config, now_s)
        except ServingError as error:
            self.reject(request, error)
            raise
        active = self._active(request, taken)
        self._running.add(active)
        self._metrics.accepted(len(request.prompt_token_ids))
        loop = asyncio.get_running_loop()
        active.timers.deadline = loop.call_later(request.deadline_s - now_s, self._deadline_passed, active)
        dispatch(active, now_s, self._config.routing.growth_tokens)
        self._fleet.prefixes.note(active.computing.id, taken.prefix_keys)
        if active.prefill is not None:
            self._fleet.prefixes.reserve(active.decode.id, taken.prefix_keys)
        return active.stream

    def reject(self, request: RouterRequest, error: ServingError) -> None:
        """Note that a request is not taken."""
        note(self._sinks, record_of_rejected(request, error, self._clock.now()), error)

    def abort(self, request_id: str, tenant: str) -> bool:
        """End it with reason ABORT; False when this tenant has no such request."""
        active = self._running.by_id.get(request_id)
        if active is None or active.request.tenant != tenant:
            return False
        now_s = self._clock.now()
        self._running.end(active, active.finished(FinishReason.ABORT, active.order.next_index, now_s), now_s)
        return True

    def cancel(self, active: ActiveRequest) -> None:
        """The reader wants no more."""
        if not active.ended:
            self._running.end(active, Cancelled("cancelled by the client"))

    def finish(self, active: ActiveRequest, num_tokens: int) -> Finished:
        """The reader has enough: reason STOP; also right when the request has just ended by itself."""
        now_s = self._clock.now()
        result = active.finished(FinishReason.STOP, num_tokens, now_s)
        if not active.ended:
            self._running.end(active, result, now_s)
        return result

    def check_stalled(self) -> None:
        """Cut off clients that have stopped reading; called by housekeeping."""
        now_s = self._clock.now()
        for active in self._running:
            stalled_s = active.stalled_for_s(self._config.stall_tokens, now_s)
            if stalled_s >= self._config.stall_timeout_s:
                unread = active.stream.unread_tokens
                self._running.end(active, Cancelled(f"the client left {unread:,} tokens unread for {stalled_s:.0f} s"))

    def _active(self, request: RouterRequest, taken: Admission) -> ActiveRequest:
        predicted = predict(taken.prefill, taken.decode, len(request.prompt_token_ids), taken.cached_tokens)
        handle = _Handle(self)
        handle.active = ActiveRequest(
            request=request,
            key=self._new_key(request.request_id),
            attempts=1,
            prefill=taken.prefill,
            decode=taken.decode,
            marks=Marks(request.received_s, predicted),
            order=TokenOrder(self._config.max_ahead_tokens),
            timers=Timers(),
            stream=RequestStream(handle),
            prefix_keys=taken.prefix_keys,
            expected_cached_tokens=taken.cached_tokens,
        )
        return handle.active

    def _new_key(self, request_id: str) -> SequenceKey:
        self._last_attempt = self._last_attempt % 0xFFFFFFFF + 1  # uint32 on the wire, never 0
        return SequenceKey(request_id, self._last_attempt)

    def _deadline_passed(self, active: ActiveRequest) -> None:
        limit_s = active.request.deadline_s - active.request.received_s
        self._running.end(active, DeadlineExceeded(f"not finished within {limit_s:.3f} s"))


class _Handle:
    """What a stream may ask for: the end of its own request."""

    active: ActiveRequest

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    def cancel(self) -> None:
        self._requests.cancel(self.active)

    def finish(self, num_tokens: int) -> Finished:
        return self._requests.finish(self.active, num_tokens)
