"""Whether a request met its SLO, and the one phase to blame if not. docs/slo.md has the rules in words.

The question is always: which phase, had it taken what was predicted, would have saved the threshold?
"""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.errors import (
    CapacityError,
    DeadlineExceeded,
    HandoffError,
    LeaseExpired,
    NoWorker,
    PeerLost,
    RequestError,
    ServingError,
    Stopping,
    TransferCorrupt,
)
from pdserve.slo import Blame, Slo, Timing, Verdict
from router.record import Predicted

_WORK = (Blame.PREFILL, Blame.TRANSFER, Blame.DECODE)  # the others are waits


@dataclass(frozen=True, slots=True)
class Share:
    """What one phase took of a budget, seconds."""

    blame: Blame
    measured_s: float
    predicted_s: float  # 0 where nothing was known

    @property
    def excess_s(self) -> float:
        return self.measured_s - self.predicted_s


def first_token_shares(timing: Timing, predicted: Predicted) -> list[Share]:
    """What TTFT consists of."""
    return [
        Share(Blame.QUEUE, timing.queue_s, predicted.queue_s or 0.0),
        Share(Blame.PREFILL, timing.prefill_s, predicted.prefill_s or 0.0),
    ]


def later_token_shares(timing: Timing, num_tokens: int, predicted: Predicted) -> list[Share]:
    """What the time behind token 1 consists of."""
    handed_over = timing.transfer_s > 0.0 or timing.decode_wait_s > 0.0
    steps_s = (predicted.decode_step_s or 0.0) * max(0, num_tokens - 1)
    return [
        Share(Blame.TRANSFER, timing.transfer_s, (predicted.transfer_s or 0.0) if handed_over else 0.0),
        Share(Blame.DECODE_WAIT, timing.decode_wait_s, (predicted.decode_wait_s or 0.0) if handed_over else 0.0),
        Share(Blame.DECODE, timing.decode_s, steps_s),
    ]


def culprit(shares: list[Share], budget_s: float) -> Blame:
    """Whom to blame for shares that together exceed the budget."""
    worst = max(shares, key=lambda share: share.excess_s)
    if sum(share.measured_s for share in shares) - max(0.0, worst.excess_s) <= budget_s:
        return worst.blame  # it alone would have saved it; if another would have too, it is the larger
    if sum(share.predicted_s for share in shares) <= budget_s:
        return worst.blame  # only several together would have
    hopeless = [share for share in shares if share.blame in _WORK and share.predicted_s > budget_s]
    if hopeless:
        return max(hopeless, key=lambda share: share.predicted_s).blame  # could not be met on an idle cluster
    return max(shares, key=lambda share: share.measured_s).blame  # the miss was foretold: where the time went


def judge_served(timing: Timing, num_tokens: int, slo: Slo, predicted: Predicted) -> Verdict:
    """A request that has its tokens: TTFT before TPOT; a retry's loss of time is the lost worker's."""
    met_ttft = slo.ttft_s is None or (num_tokens > 0 and timing.ttft_s <= slo.ttft_s)
    met_tpot = slo.tpot_s is None or timing.tpot_s <= slo.tpot_s
    if met_ttft and met_tpot:
        return Verdict(True, True, Blame.NONE)
    if timing.attempts > 1:
        return Verdict(met_ttft, met_tpot, Blame.WORKER_LOSS)
    if not met_ttft:
        assert slo.ttft_s is not None
        return Verdict(met_ttft, met_tpot, culprit(first_token_shares(timing, predicted), slo.ttft_s))
    assert slo.tpot_s is not None
    shares = later_token_shares(timing, num_tokens, predicted)
    return Verdict(met_ttft, met_tpot, culprit(shares, slo.tpot_s * (num_tokens - 1)))


def judge_unserved(
    error: ServingError, timing: Timing, num_tokens: int, slo: Slo, predicted: Predicted, limit_s: float
) -> Verdict:
    """A request that did not get all its tokens is a miss, whatever it asked for; `limit_s` was its deadline."""
    first_in_time = num_tokens > 0 and (slo.ttft_s is None or timing.ttft_s <= slo.ttft_s)
    return Verdict(first_in_time, False, _reason(error, timing, num_tokens, slo, predicted, limit_s))


def _reason(
    error: ServingError, timing: Timing, num_tokens: int, slo: Slo, predicted: Predicted, limit_s: float
) -> Blame:
    if isinstance(error, TransferCorrupt | LeaseExpired):
        return Blame.TRANSFER
    if isinstance(error, HandoffError) and not isinstance(error, Stopping):
        return Blame.WORKER_LOSS
    if isinstance(error, CapacityError):
        return Blame.QUEUE if num_tokens == 0 else Blame.DECODE_WAIT
    if not isinstance(error, DeadlineExceeded):
        return Blame.NONE  # our own bug, or this router stops: no phase took too long
    if timing.attempts > 1:
        return Blame.WORKER_LOSS
    shares = first_token_shares(timing, predicted)
    if num_tokens > 0:
        if slo.ttft_s is not None and timing.ttft_s > slo.ttft_s:
            return culprit(shares, slo.ttft_s)
        shares += later_token_shares(timing, num_tokens, predicted)
    return culprit(shares, limit_s)


def judge_rejected(error: ServingError) -> Verdict | None:
    """A request that was not taken; the caller's own fault says nothing about the SLO."""
    if isinstance(error, RequestError):
        return None
    if isinstance(error, NoWorker | PeerLost):
        return Verdict(False, False, Blame.WORKER_LOSS)
    full = isinstance(error, CapacityError | DeadlineExceeded)
    return Verdict(False, False, Blame.QUEUE if full else Blame.NONE)
