"""What a simulation tells: a column per quantity, a row per request, and what the workers did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from placement.simulator.requests import Outcome, RequestLife
from placement.simulator.worker import WorkerCounts
from scheduling.routing import Role

Seconds = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


_TIMES = (
    "ttft_s", "tpot_s", "e2e_s", "queue_s", "prefill_s", "transfer_s", "decode_wait_s", "decode_s", "max_gap_s",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class RequestColumns:
    """Rows in the order of the requests given; times of requests that were not served are nan."""

    arrival_s: Seconds
    prompt_tokens: Counts
    output_tokens: Counts  # delivered
    outcome: Counts  # of `Outcome`
    ttft_s: Seconds
    tpot_s: Seconds  # 0 for a single token
    e2e_s: Seconds
    queue_s: Seconds
    prefill_s: Seconds
    transfer_s: Seconds
    decode_wait_s: Seconds
    decode_s: Seconds
    max_gap_s: Seconds
    cached_tokens: Counts

    def met(self, ttft_s: float, tpot_s: float) -> npt.NDArray[np.bool_]:
        """Which requests meet both; one that was not served misses."""
        served = self.outcome == Outcome.FINISHED
        met: npt.NDArray[np.bool_] = served & (self.ttft_s <= ttft_s) & (self.tpot_s <= tpot_s)
        return met

    def attainment(self, ttft_s: float, tpot_s: float) -> float:
        """Share of all requests that meet both; nan without requests."""
        return float(np.mean(self.met(ttft_s, tpot_s))) if len(self.arrival_s) else float("nan")


class Change(Enum):
    """What can happen to a worker."""

    DIED = "died"
    STARTED = "started"
    DRAINED = "drained"  # it takes no more requests, for its role changes
    CHANGED = "changed"  # it starts in its new role


@dataclass(frozen=True, slots=True)
class Happened:
    """One change that a run has seen."""

    at_s: float
    worker_id: str
    change: Change
    role: Role  # from then on, or what it will be


@dataclass(frozen=True, slots=True, eq=False)
class SimulationResult:
    """One run."""

    requests: RequestColumns
    workers: Mapping[str, WorkerCounts]
    end_s: float  # of the last event
    moved_bytes: float
    num_events: int
    errors: Mapping[str, int]  # messages of those rejected or failed, and how many
    complete: bool = True  # False: given up before its end
    happened: tuple[Happened, ...] = ()  # in order


def collect(
    lives: Sequence[RequestLife], workers: Mapping[str, WorkerCounts], end_s: float, moved_bytes: float, num_events: int
) -> SimulationResult:
    """Columns from lives."""
    errors: dict[str, int] = {}
    rows = np.full((len(lives), len(_TIMES)), np.nan)
    for row, life in zip(rows, lives, strict=True):
        if life.error:
            errors[life.error] = errors.get(life.error, 0) + 1
        if life.outcome is Outcome.FINISHED and life.first_s is not None:
            row[:] = _times(life, life.first_s)

    def column(get: str) -> Counts:
        return np.array([getattr(life, get) for life in lives], np.int64)

    columns = RequestColumns(
        arrival_s=np.array([life.request.arrival_s for life in lives], float),
        prompt_tokens=np.array([life.request.prompt_tokens for life in lives], np.int64),
        output_tokens=column("num_tokens"),
        outcome=column("outcome"),
        cached_tokens=column("cached_tokens"),
        **dict(zip(_TIMES, rows.T, strict=True)),
    )
    return SimulationResult(columns, workers, end_s, moved_bytes, num_events, errors)


def _times(life: RequestLife, first_s: float) -> tuple[float, ...]:
    """`_TIMES` of one request; the five phases are divided as the router does, and add up to the whole."""
    arrival_s = life.request.arrival_s
    ttft_s, left_s = first_s - arrival_s, life.last_s - first_s
    prefill_s = min(life.prefill_s, ttft_s)
    transfer_s = 0.0 if life.committed_s is None else min(max(0.0, life.committed_s - first_s), left_s)
    wait_s = min(life.decode_wait_s, left_s - transfer_s)
    tpot_s = left_s / (life.num_tokens - 1) if life.num_tokens > 1 else 0.0
    phases = (ttft_s - prefill_s, prefill_s, transfer_s, wait_s, left_s - transfer_s - wait_s)
    return (ttft_s, tpot_s, life.last_s - arrival_s, *phases, life.max_gap_s)
