"""Where a request's time went: the router's clock at the borders, workers' durations inside.

    received     first step     token 1        room on D      KV committed   first decode step      the end
       |── queue ────|── prefill ──|─ decode_wait ─|── transfer ────|─ decode_wait ──|──── decode ─────|

Received, token 1, room, committed and the end are instants of the router; queue's end and the second wait's are a
worker's durations laid in between. A border never lies before the one to its left, so that the five phases are a
partition of the time from received to the end, whatever workers claim and however the request ended.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from pdserve.slo import Timing
from router.core.messages import SequenceTimes
from router.record import Predicted, Transfer


@dataclass(slots=True)
class Marks:
    """What happened when, for one attempt; instants on the router's clock."""

    received_s: float
    predicted: Predicted = field(default_factory=Predicted)
    dispatched_s: float | None = None  # the workers were told
    counts: list[int] = field(default_factory=list)  # tokens that had left the router ...
    times: list[float] = field(default_factory=list)  # ... at this instant; both only grow
    started_s: float | None = None  # the prompt's first step, where a worker said so before token 1
    prompt: SequenceTimes | None = None  # of the worker that computed the prompt
    decode: SequenceTimes | None = None  # of the decode worker, when it is another one
    reserved_s: float | None = None  # the decode worker has room
    committed_s: float | None = None  # the decode worker owns the KV
    transfer: Transfer | None = None

    def left(self, num_tokens: int, now_s: float) -> None:
        """`num_tokens` in all have left the router."""
        self.counts.append(num_tokens)
        self.times.append(now_s)

    def prompt_started(self, waited_s: float, now_s: float) -> None:
        """Its worker has begun with the prompt, so long after it was told; token 1 will bring better times."""
        assert self.dispatched_s is not None
        self.started_s = min(now_s, self.dispatched_s + waited_s)

    @property
    def first_s(self) -> float | None:
        return self.times[0] if self.times else None

    def token_left_s(self, count: int) -> float:
        """When token number `count` (from 1) left; the last that did when there are fewer."""
        index = min(bisect_left(self.counts, count), len(self.times) - 1)
        return self.times[index]


@dataclass(frozen=True, slots=True)
class Borders:
    """Offsets from `received`, seconds, never falling from left to right; None: not reached."""

    prefill_started_s: float | None
    first_token_s: float | None
    reserved_s: float | None  # None also without a handoff; at or before the first token nobody waited for room
    committed_s: float | None
    decode_started_s: float | None
    ended_s: float


def served_end_s(marks: Marks, num_tokens: int, now_s: float) -> float:
    """When the last token that counts had left; without any, now."""
    return marks.token_left_s(max(1, num_tokens)) if marks.times else now_s


def borders(marks: Marks, end_s: float, *, handed_over: bool) -> Borders:
    """The borders of a request that ended at `end_s`; `handed_over`: it has a decode worker other than its first."""
    ended_s = max(0.0, end_s - marks.received_s)
    first_s = None if marks.first_s is None else _between(marks.first_s - marks.received_s, 0.0, ended_s)
    if first_s is None:
        started_s = None if marks.started_s is None else _between(marks.started_s - marks.received_s, 0.0, ended_s)
        return Borders(started_s, None, None, None, None, ended_s)
    computing_s = marks.prompt.first_token_s if marks.prompt is not None else 0.0
    started_s = _between(first_s - computing_s, 0.0, first_s)
    if not handed_over:
        return Borders(started_s, first_s, None, None, first_s, ended_s)
    commit_s = None if marks.committed_s is None else _between(marks.committed_s - marks.received_s, first_s, ended_s)
    room_s = None if marks.reserved_s is None else marks.reserved_s - marks.received_s
    if room_s is not None:
        room_s = _between(room_s, 0.0, ended_s if commit_s is None else commit_s)
    elif commit_s is not None:
        room_s = first_s  # a commit proves that there was room
    decode_s = None
    if marks.decode is not None:
        begin_s = first_s if commit_s is None else commit_s
        decode_s = _between(begin_s + max(0.0, marks.decode.queue_s), begin_s, ended_s)
    return Borders(started_s, first_s, room_s, commit_s, decode_s, ended_s)


def _between(seconds: float, low_s: float, high_s: float) -> float:
    return min(max(low_s, seconds), high_s)


def breakdown(
    at: Borders, num_tokens: int, last_s: float | None, *, prefill_worker: str, decode_worker: str, attempts: int
) -> Timing:
    """The phases between the borders; `last_s` is when the last token that counts left, as an offset."""
    end_s, first_s = at.ended_s, at.first_token_s
    queue_s = end_s if at.prefill_started_s is None else at.prefill_started_s
    prefill_s = transfer_s = wait_s = decode_s = ttft_s = tpot_s = 0.0
    if first_s is None:
        prefill_s = end_s - queue_s
    else:
        prefill_s, ttft_s = first_s - queue_s, first_s
        decode_began_s = end_s if at.decode_started_s is None else at.decode_started_s
        decode_s = end_s - decode_began_s
        if at.decode_started_s != first_s:  # else nothing was handed over, or it took no time
            room_s = decode_began_s if at.reserved_s is None else max(first_s, at.reserved_s)
            committed_s = decode_began_s if at.committed_s is None else at.committed_s
            transfer_s = committed_s - min(room_s, committed_s)
            wait_s = decode_began_s - first_s - transfer_s
        if num_tokens > 1 and last_s is not None:
            tpot_s = (last_s - first_s) / (num_tokens - 1)
    return Timing(
        queue_s=queue_s,
        prefill_s=prefill_s,
        transfer_s=transfer_s,
        decode_wait_s=wait_s,
        decode_s=decode_s,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        prefill_worker=prefill_worker,
        decode_worker=decode_worker,
        attempts=attempts,
    )
