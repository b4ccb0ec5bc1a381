"""What `pdserve plan --live` asks: what came lately, and the workers as they measured themselves.

Numbers alone: no prompt, no answer, no tenant, no request id.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any, NamedTuple

from pdserve.planning_format import FORMAT, KEY
from pdserve.slo import Slo
from router.core.messages import StatusReport
from router.dashboard.source import WorkerState
from router.record import Outcome, RequestRecord
from scheduling.routing import RoutingConfig

MAX_REQUESTS = 5000  # that are remembered; those that ended first are forgotten
WINDOW_S = 900.0
_KNOWN = {Outcome.FINISHED, Outcome.CANCELLED}  # what one who left was given was work as any other's


class _Served(NamedTuple):
    """One request whose output is known."""

    received_unix_s: float
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class RecentRequests:
    """A ring, fed with every record. By the wall clock: when a request came is all that is asked of it."""

    def __init__(self) -> None:
        self._started_s = time.time()
        self._served: deque[_Served] = deque(maxlen=MAX_REQUESTS)
        self._unknown: deque[float] = deque(maxlen=MAX_REQUESTS)  # when the others came

    def add(self, record: RequestRecord) -> None:
        """One request ended."""
        if record.outcome in _KNOWN and record.completion_tokens and record.prompt_tokens:
            self._served.append(
                _Served(record.received_unix_s, record.prompt_tokens, record.completion_tokens, record.cached_tokens)
            )
        else:
            self._unknown.append(record.received_unix_s)

    def columns(self, now_s: float) -> dict[str, Any]:
        """Those that came within the window, by arrival; of the others how many. `now_s`: the wall clock's."""
        since_s = max(self._started_s, now_s - WINDOW_S)
        if len(self._served) == MAX_REQUESTS:  # of those that came before the oldest, some are forgotten
            since_s = max(since_s, self._served[0].received_unix_s)
        rows = sorted(one for one in self._served if since_s <= one.received_unix_s <= now_s)
        return {
            "since_unix_s": round(since_s, 3),
            "window_s": round(max(0.0, now_s - since_s), 3),
            "num_unknown": sum(since_s <= one <= now_s for one in self._unknown),
            "arrival_s": [round(one.received_unix_s - since_s, 3) for one in rows],
            "prompt_tokens": [one.prompt_tokens for one in rows],
            "completion_tokens": [one.completion_tokens for one in rows],
            "cached_tokens": [one.cached_tokens for one in rows],
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
        "growth_tokens": routing.growth_tokens,
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
        "mean_sequences": None if worker.status is None else _mean_sequences(worker.status),
    }


def _mean_sequences(status: StatusReport) -> float | None:
    """Of a step, since the worker's start: how far its latency was measured; None: it has taken none."""
    sizes = next((one for one in status.histograms if one.name == "batch_size"), None)
    return None if sizes is None or not (steps := sum(sizes.counts)) else round(sizes.sum / steps, 3)
