"""Where a request's time went, and whom to blame: the router's clock at the borders, workers' durations inside.

    received        first step      token 1          KV committed     first decode step      last token
       |── queue ──────|── prefill ────|── transfer ─────|── decode_wait ────|──── decode ─────────|

Received, token 1, committed and last token are instants of the router; queue's end and decode_wait's are a worker's
durations laid in between and clipped. The five phases add up to last token minus received.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from pdserve.slo import Blame, Slo, Timing, Verdict
from router.core.messages import SequenceTimes


@dataclass(slots=True)
class Marks:
    """What happened when, for one attempt; instants on the router's clock."""

    received_s: float
    predicted_prefill_s: float = 0.0  # the prompt alone on an idle worker; 0: unknown
    counts: list[int] = field(default_factory=list)  # tokens that had left the router ...
    times: list[float] = field(default_factory=list)  # ... at this instant; both only grow
    prompt: SequenceTimes | None = None  # of the worker that computed the prompt
    decode: SequenceTimes | None = None  # of the decode worker, when it is another one
    committed_s: float | None = None  # the decode worker owns the KV

    def left(self, num_tokens: int, now_s: float) -> None:
        """`num_tokens` in all have left the router."""
        self.counts.append(num_tokens)
        self.times.append(now_s)

    @property
    def first_s(self) -> float | None:
        return self.times[0] if self.times else None

    def token_left_s(self, count: int) -> float:
        """When token number `count` (from 1) left; the last that did when there are fewer."""
        index = min(bisect_left(self.counts, count), len(self.times) - 1)
        return self.times[index]


def breakdown(
    marks: Marks, num_tokens: int, now_s: float, *, prefill_worker: str, decode_worker: str, attempts: int
) -> Timing:
    """The timing of a request that ends with `num_tokens` tokens; without any, all of it was queue (until `now_s`)."""
    queue_s = prefill_s = transfer_s = wait_s = decode_s = ttft_s = tpot_s = 0.0
    if marks.first_s is None or num_tokens == 0:
        queue_s = max(0.0, now_s - marks.received_s)
    else:
        first_s, last_s = marks.first_s, marks.token_left_s(num_tokens)
        ttft_s = first_s - marks.received_s
        prefill_s = _clip(marks.prompt.first_token_s if marks.prompt else 0.0, ttft_s)
        queue_s = ttft_s - prefill_s
        left_s = last_s - first_s
        if marks.committed_s is not None:
            transfer_s = _clip(marks.committed_s - first_s, left_s)
        if marks.decode is not None:
            wait_s = _clip(marks.decode.queue_s, left_s - transfer_s)
        decode_s = left_s - transfer_s - wait_s
        tpot_s = left_s / (num_tokens - 1) if num_tokens > 1 else 0.0
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


def _clip(seconds: float, limit_s: float) -> float:
    return min(max(0.0, seconds), max(0.0, limit_s))


def judge(timing: Timing, num_tokens: int, slo: Slo, predicted_prefill_s: float) -> Verdict:
    """Whether the SLO was met, and the phase to blame for the first miss (TTFT before TPOT).

    TTFT: prefill when the prompt alone was predicted to take longer than the SLO; else the larger of the queue and
    what prefill took beyond its prediction. TPOT: the largest excess among transfer, decode_wait (which should not be
    there at all) and decode (beyond the SLO for its tokens). A worker that was lost is to blame for every miss.
    """
    met_ttft = slo.ttft_s is None or (num_tokens > 0 and timing.ttft_s <= slo.ttft_s)
    met_tpot = slo.tpot_s is None or timing.tpot_s <= slo.tpot_s
    if met_ttft and met_tpot:
        return Verdict(True, True, Blame.NONE)
    if timing.attempts > 1:
        return Verdict(met_ttft, met_tpot, Blame.WORKER_LOSS)
    if not met_ttft:
        assert slo.ttft_s is not None
        hopeless = predicted_prefill_s > slo.ttft_s
        waited = timing.queue_s > timing.prefill_s - predicted_prefill_s
        return Verdict(met_ttft, met_tpot, Blame.QUEUE if waited and not hopeless else Blame.PREFILL)
    assert slo.tpot_s is not None
    excesses = {
        Blame.DECODE: timing.decode_s - slo.tpot_s * (num_tokens - 1),
        Blame.TRANSFER: timing.transfer_s,
        Blame.DECODE_WAIT: timing.decode_wait_s,
    }
    return Verdict(met_ttft, met_tpot, max(excesses, key=lambda blame: excesses[blame]))
