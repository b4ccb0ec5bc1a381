"""What `pdserve plan --live` asks: what came lately, and the workers as they measured themselves.

Numbers alone: no prompt, no answer, no tenant, no request id.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any, NamedTuple

from pdserve.planning_format import FORMAT, KEY
from pdserve.slo import Slo
from router.core.messages import StatusReport
from router.dashboard.source import WorkerState, histogram_of
from router.record import Outcome, RequestRecord
from scheduling.routing import RoutingConfig

MAX_REQUESTS = 5000  # that are remembered; those that ended first are forgotten
WINDOW_S = 900.0
_KNOWN = {Outcome.FINISHED, Outcome.CANCELLED}  # what one who left was given was work as any other's


class _Served(NamedTuple):
    """One request whose output is known."""

    ended_s: float  # both on the router's clock
    received_s: float
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class _Unserved(NamedTuple):
    """One that was refused or failed."""

    ended_s: float
    received_s: float


class RecentRequests:
    """Rings in order of end, fed with every record. Times are the router's clock's.

    Of a window both sides are right only by themselves. What *came* within it is those that ended and those that still
    run. How *long* they are, those that *ended* within it say: of those that came, the long ones are not known yet.
    """

    def __init__(self, started_s: float) -> None:
        self._started_s = started_s
        self._served: deque[_Served] = deque(maxlen=MAX_REQUESTS)
        self._unserved: deque[_Unserved] = deque(maxlen=MAX_REQUESTS)

    def add(self, record: RequestRecord, now_s: float) -> None:
        """One request ended, now."""
        received_s = now_s - record.ended_s
        if record.outcome in _KNOWN and record.completion_tokens and record.prompt_tokens:
            self._served.append(
                _Served(now_s, received_s, record.prompt_tokens, record.completion_tokens, record.cached_tokens)
            )
        else:
            self._unserved.append(_Unserved(now_s, received_s))

    def columns(self, now_s: float, unix_s: float, running_since_s: Sequence[float]) -> dict[str, Any]:
        """Arrivals within the window in their order, and lengths of those that ended within it in the order of end.

        `running_since_s`: when those that still run were received. `unix_s`: the wall clock's now, for people.
        """
        since_s = max(self._started_s, now_s - WINDOW_S)
        if len(self._served) == MAX_REQUESTS:  # who is forgotten ended before the oldest, so came before its end
            since_s = max(since_s, self._served[0].ended_s)
        window_s = max(0.0, now_s - since_s)
        came = [*(one.received_s for one in self._served), *running_since_s]
        ended = [one for one in self._served if one.ended_s >= since_s]
        unserved = self._unserved
        return {
            "since_unix_s": round(unix_s - window_s, 3),
            "window_s": round(window_s, 3),
            "num_unknown": sum(one.received_s >= since_s for one in unserved),
            "more_unknown": len(unserved) == MAX_REQUESTS and unserved[0].ended_s > since_s,  # some are forgotten
            "num_running": len(running_since_s),
            "oldest_running_s": round(max(0.0, now_s - min(running_since_s, default=now_s)), 3),
            "arrival_s": sorted(round(one - since_s, 3) for one in came if one >= since_s),
            "prompt_tokens": [one.prompt_tokens for one in ended],
            "completion_tokens": [one.completion_tokens for one in ended],
            "cached_tokens": [one.cached_tokens for one in ended],
        }


def planning_of(
    model: str,
    slo: Slo,
    routing: RoutingConfig,
    workers: Sequence[WorkerState],
    link_rates: Sequence[float],
    requests: dict[str, Any],
) -> dict[str, Any]:
    """All of it, for JSON; `link_rates`: bytes per second of each link that has moved something."""
    return {
        KEY: FORMAT,
        "model": model,
        "slo": {"ttft_s": slo.ttft_s, "tpot_s": slo.tpot_s},
        "local_prefill_max_tokens": routing.local_prefill_max_tokens,
        "link_bytes_per_s": median(link_rates) if link_rates else None,
        "workers": [_row(worker) for worker in workers],
        "requests": requests,
    }


def _row(worker: WorkerState) -> dict[str, Any]:
    """A worker; of one that is down only who it was."""
    row: dict[str, Any] = {"id": worker.id, "role": worker.role, "device": worker.device, "up": worker.up}
    known = worker.identity
    if not worker.up or known is None:
        return row
    latency = None if worker.status is None else worker.status.latency
    return row | {
        "num_blocks": known.num_blocks,
        "block_size": known.block_size,
        "block_bytes": known.block_bytes,
        "max_num_seqs": known.max_num_seqs,
        "max_num_batched_tokens": known.max_num_batched_tokens,
        "max_model_len": known.max_model_len,
        "prefix_caching": known.prefix_caching,
        "latency": None if latency is None or not latency.known else asdict(latency),
        "mean_sequences": _mean_sequences(worker.status),
    }


def _mean_sequences(status: StatusReport | None) -> float | None:
    """Of a step, since the worker's start: how far its latency was measured; None: it has taken none."""
    sizes = histogram_of(status, "batch_size")
    if sizes is None or not (steps := sum(sizes.counts)) or not 0.0 <= sizes.sum < math.inf:
        return None
    return round(sizes.sum / steps, 3)
