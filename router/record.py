"""All that is known of one request at its end, and who wants to know: metrics, log, traces, the dashboard.

    received   prefill_started   first_token      reserved     committed    decode_started    ended
       |── queue ────|── prefill ─────|─ decode_wait ─|── transfer ──|─ decode_wait ─|── decode ──|

(room on the decode worker is nearly always there before token 1: then there is no first decode_wait)

Every instant is an offset in seconds from `received`, on the router's monotonic clock; borders never go backwards. A
request that did not get as far as a border has None there, and the phase that it was in lasts until `ended_s`: the
phases add up to it, whatever ended it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from pdserve.sampling import FinishReason
from pdserve.slo import Slo, Timing, Verdict


class Outcome(Enum):
    """How a request ended."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    FAILED = "failed"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Predicted:
    """What the latency model said when the request was placed, seconds; None: nothing was known."""

    queue_s: float | None = None
    prefill_s: float | None = None
    transfer_s: float | None = None  # the part behind token 1
    decode_wait_s: float | None = None
    decode_step_s: float | None = None  # one decode step, this sequence included: the predicted gap between tokens


@dataclass(frozen=True, slots=True)
class WorkerTimes:
    """A worker's own measurement, by its own clock."""

    queue_s: float  # received (or KV committed) there until its first step
    first_token_s: float  # first step until the first token sampled there


@dataclass(frozen=True, slots=True)
class Transfer:
    """The KV that moved."""

    num_bytes: int
    blocks_skipped: int  # the decode worker had them already
    seconds: float  # first byte expected until commit, by the decode worker's clock; overlaps the prefill
    busy_s: float  # of it, with a block under way
    transport: str | None  # "shm", "gloo", ...; None: nothing moved


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request (one choice of it), ended. Made once, when it ends; rejected ones too."""

    request_id: str
    tenant: str
    priority: int
    slo: Slo  # class and thresholds
    deadline_s: float  # offset
    trace_parent: str | None  # W3C traceparent that the client sent

    outcome: Outcome
    finish_reason: FinishReason | None  # only of a request that was served
    error_status: str | None  # name of a gRPC status code, for anything else
    error: str | None  # one line

    prompt_tokens: int
    completion_tokens: int  # that count
    cached_tokens: int  # of the prompt, found in a prefix cache

    received_unix_s: float  # wall clock, for people; everything else is a duration
    dispatched_s: float | None  # the workers were told; None: rejected
    prefill_started_s: float | None
    first_token_s: float | None
    reserved_s: float | None  # the decode worker had room; later than the first token, what lies between is decode_wait
    committed_s: float | None  # the decode worker owned the KV; None: nothing was handed over
    decode_started_s: float | None
    ended_s: float  # the last token that counts left; without a served end, the instant of the end

    timing: Timing  # workers in it: "" when there were none
    predicted: Predicted
    verdict: Verdict | None  # None: it says nothing about the SLO (the client left, or asked for nonsense)

    prompt_times: WorkerTimes | None  # of the worker that computed the prompt
    decode_times: WorkerTimes | None  # of the decode worker, when it is another one
    transfer: Transfer | None


class RecordSink(Protocol):
    """Who is told of every request's end: once per request, on the router's loop; must not wait, nor raise."""

    def record(self, record: RequestRecord) -> None: ...
