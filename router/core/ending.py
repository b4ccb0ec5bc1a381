"""What the end of a request means to others: to its workers, and to everyone who keeps records."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import NamedTuple

from pdserve.errors import Cancelled, DeadlineExceeded, ServingError, StatusCode
from pdserve.sampling import FinishReason
from pdserve.slo import Timing, Verdict
from router.core.active import ActiveRequest
from router.core.messages import SequenceTimes
from router.core.verdict import judge_rejected, judge_unserved
from router.interface import Finished, RouterRequest
from router.record import Outcome, Predicted, RecordSink, RequestRecord, WorkerTimes
from scheduling.prefix_directory import CHUNK_TOKENS, PrefixDirectory, extended_keys

log = logging.getLogger(__name__)

Ending = Finished | ServingError
_KEEPS = Finished | Cancelled | DeadlineExceeded  # the decode worker is well, and was told to let go


def release(active: ActiveRequest, ending: Ending, freed_grace_s: float) -> None:
    """Tell every worker that may still hold something; a source whose commit is on its way gets a moment to read it."""
    for worker in active.parties:
        freeing = worker is active.prefill and active.committed and isinstance(ending, Finished)
        if freeing and active.key in worker.holding:
            asyncio.get_running_loop().call_later(freed_grace_s, worker.abort, active.key)
        else:
            worker.abort(active.key)


def note_kept(prefixes: PrefixDirectory, active: ActiveRequest, ending: Ending) -> None:
    """The decode worker has cached the prompt and what it generated, but for the last token, whose KV nobody computed.

    Nothing is noted of a worker that failed, or had not got the prompt. Cost: O(chunks); hashed is the answer alone.
    """
    if prefixes and active.decode_goes_on and active.answer and isinstance(ending, _KEEPS):
        rest = active.request.prompt_token_ids[len(active.prefix_keys) * CHUNK_TOKENS :] + tuple(active.answer[:-1])
        prefixes.note(active.decode.id, extended_keys(active.prefix_keys, rest, active.request.tenant))


def note(sinks: Iterable[RecordSink], record: RequestRecord, ending: Ending) -> None:
    """Tell everyone, the error its verdict; a sink that breaks harms neither the request nor the others."""
    if isinstance(ending, ServingError):
        ending.verdict = record.verdict
    for sink in sinks:
        try:
            sink.record(record)
        except Exception:
            log.exception("%s could not take the record of %s", type(sink).__name__, record.request_id)


def record_of(active: ActiveRequest, ending: Ending, now_s: float) -> RequestRecord:
    """All that is known of a request that was taken. Without a verdict: the client left, or said stop."""
    request, marks = active.request, active.marks
    end = _served(active, ending, now_s) if isinstance(ending, Finished) else _unserved(active, ending, now_s)
    at = active.borders(end.end_s)
    return RequestRecord(
        request_id=request.request_id,
        tenant=request.tenant,
        priority=request.priority,
        slo=request.slo,
        deadline_s=request.deadline_s - request.received_s,
        trace_parent=request.trace_parent,
        outcome=end.outcome,
        finish_reason=end.finish_reason,
        error_status=None if end.error is None else end.error.status.name,
        error=None if end.error is None else end.error.message,
        prompt_tokens=len(request.prompt_token_ids),
        completion_tokens=end.num_tokens,
        cached_tokens=active.cached_tokens,
        received_unix_s=time.time() - (now_s - request.received_s),
        dispatched_s=None if marks.dispatched_s is None else marks.dispatched_s - marks.received_s,
        prefill_started_s=at.prefill_started_s,
        first_token_s=at.first_token_s,
        reserved_s=at.reserved_s,
        committed_s=at.committed_s,
        decode_started_s=at.decode_started_s,
        ended_s=at.ended_s,
        timing=end.timing,
        predicted=marks.predicted,
        verdict=end.verdict,
        prompt_times=_times(marks.prompt),
        decode_times=_times(marks.decode),
        transfer=marks.transfer,
    )


def record_of_rejected(request: RouterRequest, error: ServingError, now_s: float) -> RequestRecord:
    """A request that was not taken: all of its time was queue."""
    waited_s = max(0.0, now_s - request.received_s)
    return RequestRecord(
        request_id=request.request_id,
        tenant=request.tenant,
        priority=request.priority,
        slo=request.slo,
        deadline_s=request.deadline_s - request.received_s,
        trace_parent=request.trace_parent,
        outcome=Outcome.REJECTED,
        finish_reason=None,
        error_status=error.status.name,
        error=error.message,
        prompt_tokens=len(request.prompt_token_ids),
        completion_tokens=0,
        cached_tokens=0,
        received_unix_s=time.time() - waited_s,
        dispatched_s=None,
        prefill_started_s=None,
        first_token_s=None,
        reserved_s=None,
        committed_s=None,
        decode_started_s=None,
        ended_s=waited_s,
        timing=Timing(waited_s, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, "", "", 0),
        predicted=Predicted(),
        verdict=judge_rejected(error),
        prompt_times=None,
        decode_times=None,
        transfer=None,
    )


class _End(NamedTuple):
    """What the books say of one end."""

    outcome: Outcome
    finish_reason: FinishReason | None
    error: ServingError | None
    num_tokens: int
    end_s: float
    timing: Timing
    verdict: Verdict | None


def _served(active: ActiveRequest, ending: Finished, now_s: float) -> _End:
    reason = ending.finish_reason
    end_s = active.end_s(reason, ending.num_tokens, now_s)
    if reason is FinishReason.ABORT:
        return _End(Outcome.CANCELLED, reason, None, ending.num_tokens, end_s, ending.timing, None)
    return _End(Outcome.FINISHED, reason, None, ending.num_tokens, end_s, ending.timing, ending.verdict)


def _unserved(active: ActiveRequest, error: ServingError, now_s: float) -> _End:
    request, num_tokens = active.request, active.order.next_index
    timing, outcome, verdict = active.timing(num_tokens, now_s), _failure(error), None
    if outcome is not Outcome.CANCELLED:
        limit_s = request.deadline_s - request.received_s
        verdict = judge_unserved(error, timing, num_tokens, request.slo, active.marks.predicted, limit_s)
    if outcome is Outcome.FAILED:
        # Our own bugs must be seen; a lost worker has said so once, and overload would fill the log.
        level = logging.ERROR if error.status is StatusCode.INTERNAL else logging.DEBUG
        log.log(level, "request %s failed: %s: %s", request.request_id, error.status.name, error.message)
    return _End(outcome, None, error, num_tokens, now_s, timing, verdict)


def _failure(error: ServingError) -> Outcome:
    if isinstance(error, Cancelled):
        return Outcome.CANCELLED
    return Outcome.DEADLINE if isinstance(error, DeadlineExceeded) else Outcome.FAILED


def _times(times: SequenceTimes | None) -> WorkerTimes | None:
    return None if times is None else WorkerTimes(times.queue_s, times.first_token_s)
