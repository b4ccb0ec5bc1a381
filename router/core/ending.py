"""What the end of a request means to others: to its workers, and to the metrics."""

from __future__ import annotations

import asyncio
import logging

from pdserve.errors import Cancelled, DeadlineExceeded, NoWorker, PeerLost, RequestError, ServingError, StatusCode
from pdserve.sampling import FinishReason
from pdserve.slo import Blame
from router.core.active import ActiveRequest
from router.interface import Finished, RouterRequest
from router.metrics import RouterMetrics, missed
from router.record import Outcome

log = logging.getLogger(__name__)

Ending = Finished | ServingError


def release(active: ActiveRequest, ending: Ending, freed_grace_s: float) -> None:
    """Tell every worker that may still hold something; a source whose commit is on its way gets a moment to read it."""
    for worker in active.parties:
        freeing = worker is active.prefill and active.committed and isinstance(ending, Finished)
        if freeing and active.key in worker.holding:
            asyncio.get_running_loop().call_later(freed_grace_s, worker.abort, active.key)
        else:
            worker.abort(active.key)


def count(metrics: RouterMetrics, active: ActiveRequest, ending: Ending) -> None:
    """One request ended; a client that left says nothing about the SLO, any other failure is a miss."""
    slo, tenant = active.request.slo, active.request.tenant
    if active.order.duplicates:
        metrics.stale("duplicate_token", active.order.duplicates)
    if isinstance(ending, Finished) and ending.finish_reason is not FinishReason.ABORT:
        metrics.finished(ending.num_tokens, ending.timing)
        metrics.ended(Outcome.FINISHED, slo, tenant, ending.verdict)
    elif isinstance(ending, Finished | Cancelled):
        metrics.ended(Outcome.CANCELLED, slo, tenant, None)
    elif isinstance(ending, DeadlineExceeded):
        late = Blame.QUEUE if active.marks.first_s is None else Blame.DECODE
        metrics.ended(Outcome.DEADLINE, slo, tenant, missed(late))
    else:
        # Our own bugs must be seen; a lost worker has said so once, and overload would fill the log.
        level = logging.ERROR if ending.status is StatusCode.INTERNAL else logging.DEBUG
        log.log(level, "request %s failed: %s: %s", active.key.request_id, ending.status.name, ending.message)
        lost = Blame.WORKER_LOSS if isinstance(ending, PeerLost) else Blame.NONE
        metrics.ended(Outcome.FAILED, slo, tenant, missed(lost))


def count_rejected(metrics: RouterMetrics, request: RouterRequest, error: ServingError) -> None:
    """One request was not taken; the caller's own fault says nothing about the SLO."""
    blame = Blame.WORKER_LOSS if isinstance(error, NoWorker) else Blame.QUEUE
    verdict = None if isinstance(error, RequestError) else missed(blame)
    metrics.ended(Outcome.REJECTED, request.slo, request.tenant, verdict)
