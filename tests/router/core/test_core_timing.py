"""The five phases add up whatever workers claim and however a request ends; a miss has one phase to blame."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdserve.errors import (
    DeadlineExceeded,
    HandoffError,
    InvariantViolation,
    LeaseExpired,
    NoFreeBlocks,
    NoWorker,
    PeerLost,
    PromptTooLong,
    QueueFull,
    ServingError,
    Stopping,
    TransferCorrupt,
)
from pdserve.slo import Blame, Slo, Timing
from router.core.messages import SequenceTimes
from router.core.timing import Marks, borders, breakdown, served_end_s
from router.core.verdict import culprit, first_token_shares, judge_rejected, judge_served, judge_unserved
from router.record import Predicted

SECONDS = st.floats(0.0, 10.0)
ANY_TIME = st.none() | st.floats(-5.0, 80.0)
TIMES = st.none() | st.builds(SequenceTimes, st.floats(-1.0, 20.0), st.floats(-1.0, 20.0), st.just(0))


def timing_of(marks: Marks, num_tokens: int, end_s: float, *, handed_over: bool = True) -> Timing:
    last_s = marks.token_left_s(num_tokens) - marks.received_s if num_tokens and marks.times else None
    at = borders(marks, end_s, handed_over=handed_over)
    return breakdown(at, num_tokens, last_s, prefill_worker="p", decode_worker="d", attempts=1)


def phases_of(timing: Timing) -> tuple[float, ...]:
    return (timing.queue_s, timing.prefill_s, timing.transfer_s, timing.decode_wait_s, timing.decode_s)


@given(
    gaps=st.lists(SECONDS, max_size=6),
    instants=st.tuples(ANY_TIME, ANY_TIME, ANY_TIME),
    times=st.tuples(TIMES, TIMES),
    rest_s=SECONDS,
    served=st.booleans(),
    handed_over=st.booleans(),
)
def test_phases_are_a_partition(
    gaps: list[float],
    instants: tuple[float | None, float | None, float | None],
    times: tuple[SequenceTimes | None, SequenceTimes | None],
    rest_s: float,
    served: bool,
    handed_over: bool,
) -> None:
    """None is negative, borders never go back, and the sum is the end minus received; also when clocks lie."""
    started, reserved, committed = (None if one is None else 100.0 + one for one in instants)
    marks = Marks(100.0, started_s=started, reserved_s=reserved, committed_s=committed, prompt=times[0])
    if handed_over:
        marks.decode = times[1]
    now_s = 100.0
    for n, gap in enumerate(gaps, start=1):
        now_s += gap
        marks.left(n, now_s)
    num_tokens, end_s = len(gaps), now_s + rest_s
    if served:
        end_s = served_end_s(marks, num_tokens, end_s)
    timing = timing_of(marks, num_tokens, end_s, handed_over=handed_over)
    assert sum(phases_of(timing)) == pytest.approx(end_s - 100.0, abs=1e-9)
    assert min(phases_of(timing)) >= -1e-12
    if gaps:
        assert timing.queue_s + timing.prefill_s == pytest.approx(timing.ttft_s, abs=1e-9)
        assert timing.ttft_s == pytest.approx(marks.times[0] - 100.0, abs=1e-9)
    if num_tokens > 1:
        assert timing.ttft_s + timing.tpot_s * (num_tokens - 1) == pytest.approx(now_s - 100.0, abs=1e-9)
    at = borders(marks, end_s, handed_over=handed_over)
    line = [at.prefill_started_s, at.first_token_s, at.committed_s, at.decode_started_s, at.ended_s]
    passed = [one for one in line if one is not None]
    assert passed == sorted(passed)


def test_the_walk_by_numbers() -> None:
    """Received 0, first step 0.3, token 1 at 0.5, committed 0.9, first decode step 1.0, last token 2.5."""
    marks = Marks(0.0, prompt=SequenceTimes(0.29, 0.2, 0), decode=SequenceTimes(0.1, 0.02, 0), committed_s=0.9)
    for count, when in ((1, 0.5), (2, 1.1), (5, 2.5)):
        marks.left(count, when)
    timing = timing_of(marks, 5, 2.5)
    assert phases_of(timing) == pytest.approx((0.3, 0.2, 0.4, 0.1, 1.5))
    assert (timing.ttft_s, timing.tpot_s) == pytest.approx((0.5, 0.5))
    assert marks.token_left_s(2) == marks.token_left_s(1) + 0.6
    assert marks.token_left_s(3) == marks.token_left_s(99) == 2.5


def test_waiting_for_room_is_decode_wait_not_transfer() -> None:
    """Room came 0.3 after token 1: no byte could move before."""
    marks = Marks(
        0.0, prompt=SequenceTimes(0, 0.2, 0), decode=SequenceTimes(0.1, 0, 0), reserved_s=0.8, committed_s=0.9
    )
    marks.left(1, 0.5)
    marks.left(2, 1.1)
    assert phases_of(timing_of(marks, 2, 1.1)) == pytest.approx((0.3, 0.2, 0.1, 0.4, 0.1))
    marks.reserved_s = 0.1  # the usual: long before token 1
    assert phases_of(timing_of(marks, 2, 1.1)) == pytest.approx((0.3, 0.2, 0.4, 0.1, 0.1))


def test_a_request_that_ends_early_has_the_time_so_far_in_the_phase_it_was_in() -> None:
    """Before the first step: queue. In the prompt: prefill. Without room: decode_wait. Without commit: transfer."""
    marks = Marks(0.0)
    assert phases_of(timing_of(marks, 0, 2.0)) == (2.0, 0, 0, 0, 0)
    marks.started_s = 0.5
    assert phases_of(timing_of(marks, 0, 2.0)) == (0.5, 1.5, 0, 0, 0)
    marks.prompt = SequenceTimes(0.4, 1.0, 0)
    marks.left(1, 1.5)
    assert phases_of(timing_of(marks, 1, 2.0)) == (0.5, 1.0, 0, 0.5, 0)
    marks.reserved_s = 0.2
    assert phases_of(timing_of(marks, 1, 2.0)) == (0.5, 1.0, 0.5, 0, 0)
    marks.committed_s = 1.75
    assert phases_of(timing_of(marks, 1, 2.0)) == (0.5, 1.0, 0.25, 0.25, 0)
    assert phases_of(timing_of(marks, 1, 2.0, handed_over=False)) == (0.5, 1.0, 0, 0, 0.5)


def test_a_commit_before_token_one_reaches_the_router_costs_nothing() -> None:
    """Two connections: the event may overtake the token."""
    marks = Marks(0.0, reserved_s=0.1, committed_s=0.4)
    marks.left(1, 0.5)
    marks.left(2, 0.7)
    assert timing_of(marks, 2, 0.7).transfer_s == 0.0


def phases(
    queue: float, prefill: float, transfer: float, wait: float, decode: float, n: int, attempts: int = 1
) -> Timing:
    tpot_s = (transfer + wait + decode) / (n - 1) if n > 1 else 0.0
    return Timing(queue, prefill, transfer, wait, decode, queue + prefill, tpot_s, "p", "d", attempts)


def ttft(queue: float, prefill: float) -> Timing:
    return phases(queue, prefill, 0, 0, 1, 5)


TTFT, TPOT = Slo(ttft_s=1.0), Slo(tpot_s=0.25)  # 5 tokens: 1.0 s behind token 1
NOTHING = Predicted()
MET = phases(0.5, 0.5, 0, 0, 1, 5)


@pytest.mark.parametrize(
    ("timing", "slo", "predicted", "blame"),
    [
        (phases(9, 9, 9, 9, 9, 5), Slo(), NOTHING, Blame.NONE),
        (MET, Slo(ttft_s=1.0, tpot_s=0.25), Predicted(0.5, 0.4), Blame.NONE),
        # one phase alone would have saved it
        (ttft(0.8, 0.5), TTFT, Predicted(0.1, 0.5), Blame.QUEUE),
        (ttft(0.2, 1.5), TTFT, Predicted(0.2, 0.5), Blame.PREFILL),
        (ttft(0.6, 0.6), TTFT, Predicted(0.1, 0.3), Blame.QUEUE),  # either would have: the larger excess
        (phases(0, 0, 0.6, 0.1, 0.5, 5), TPOT, Predicted(0, 0, 0.1, 0.1, 0.1), Blame.TRANSFER),
        (phases(0, 0, 0.1, 0.6, 0.5, 5), TPOT, Predicted(0, 0, 0.1, 0.1, 0.1), Blame.DECODE_WAIT),
        (phases(0, 0, 0.3, 0.2, 1.2, 5), TPOT, Predicted(0, 0, 0.3, 0.1, 0.1), Blame.DECODE),
        (phases(0, 0, 0.0, 0.0, 1.2, 5), TPOT, Predicted(0, 0, 0.5, 0.5, 0.1), Blame.DECODE),  # nothing was handed over
        # none alone, several together: the largest excess
        (ttft(1.2, 1.1), TTFT, Predicted(0.1, 0.4), Blame.QUEUE),
        (phases(0, 0, 1.1, 1.2, 0.4, 5), TPOT, Predicted(0, 0, 0.1, 0.1, 0.1), Blame.DECODE_WAIT),
        # not even all together: foretold
        (ttft(0.2, 1.5), TTFT, Predicted(0.1, 1.5), Blame.PREFILL),  # hopeless on an idle cluster
        (ttft(5.0, 1.5), TTFT, Predicted(0.1, 1.5), Blame.PREFILL),
        (ttft(2.01, 0.3), TTFT, Predicted(2.0, 0.2), Blame.QUEUE),  # waits are never hopeless: where the time went
        (ttft(0.7, 0.6), TTFT, Predicted(0.7, 0.6), Blame.QUEUE),
        (phases(0, 0, 0.3, 0.1, 1.4, 5), TPOT, Predicted(0, 0, 0.1, 0.1, 0.35), Blame.DECODE),
        (phases(0, 0, 1.3, 0.1, 0.4, 5), TPOT, Predicted(0, 0, 1.3, 0.1, 0.1), Blame.TRANSFER),
        # nothing known: all of a phase's time is excess
        (ttft(0.2, 1.5), TTFT, NOTHING, Blame.PREFILL),
        (ttft(1.5, 0.2), TTFT, NOTHING, Blame.QUEUE),
        (phases(0, 0, 0.1, 0.1, 1.5, 5), TPOT, NOTHING, Blame.DECODE),
        # TTFT before TPOT; a lost worker before both
        (phases(2.0, 0, 0.1, 0.1, 1.5, 5), Slo(ttft_s=1.0, tpot_s=0.25), NOTHING, Blame.QUEUE),
        (phases(2.0, 0, 0, 0, 0, 1, attempts=2), TTFT, NOTHING, Blame.WORKER_LOSS),
    ],
)
def test_the_phase_to_blame(timing: Timing, slo: Slo, predicted: Predicted, blame: Blame) -> None:
    """The rules of docs/slo.md, one row each."""
    n = 5 if timing.tpot_s else 1
    verdict = judge_served(timing, n, slo, predicted)
    assert verdict.blame is blame
    assert (verdict.met_ttft and verdict.met_tpot) == (blame is Blame.NONE)


@given(SECONDS, SECONDS, SECONDS, SECONDS, st.floats(0.01, 10.0))
def test_a_phase_that_alone_would_have_saved_it_is_blamed(
    queue: float, prefill: float, queue_predicted: float, prefill_predicted: float, budget_s: float
) -> None:
    """The definition, tried out: put each phase at its prediction, and see whether that saves the threshold."""
    shares = first_token_shares(ttft(queue, prefill), Predicted(queue_predicted, prefill_predicted))
    total = sum(share.measured_s for share in shares)
    if total <= budget_s:
        return
    saviours = {share.blame for share in shares if total - share.measured_s + share.predicted_s <= budget_s}
    blamed = culprit(shares, budget_s)
    assert blamed in saviours if saviours else blamed in (Blame.QUEUE, Blame.PREFILL)


@pytest.mark.parametrize(
    ("error", "timing", "num_tokens", "blame"),
    [
        (DeadlineExceeded(""), phases(9, 0, 0, 0, 0, 1), 0, Blame.QUEUE),
        (DeadlineExceeded(""), phases(1, 8, 0, 0, 0, 1), 0, Blame.PREFILL),
        (DeadlineExceeded(""), phases(0.5, 0.4, 8, 0, 0, 5), 1, Blame.TRANSFER),
        (DeadlineExceeded(""), phases(0.5, 0.4, 0, 8, 0, 5), 1, Blame.DECODE_WAIT),
        (DeadlineExceeded(""), phases(0.5, 0.4, 0, 0, 8, 5), 5, Blame.DECODE),
        (DeadlineExceeded(""), phases(2.5, 0.4, 0, 0, 8, 5), 5, Blame.QUEUE),  # TTFT was missed before
        (DeadlineExceeded(""), phases(0.5, 0.4, 0, 0, 8, 5, attempts=2), 5, Blame.WORKER_LOSS),
        (PeerLost(""), MET, 5, Blame.WORKER_LOSS),
        (NoWorker(""), MET, 0, Blame.WORKER_LOSS),
        (HandoffError(""), MET, 1, Blame.WORKER_LOSS),
        (TransferCorrupt(""), MET, 1, Blame.TRANSFER),
        (LeaseExpired(""), MET, 1, Blame.TRANSFER),
        (QueueFull(""), MET, 0, Blame.QUEUE),
        (NoFreeBlocks(""), MET, 1, Blame.DECODE_WAIT),
        (Stopping(""), MET, 1, Blame.NONE),
        (InvariantViolation(""), MET, 1, Blame.NONE),
    ],
)
def test_unserved_is_missed_and_blamed(error: ServingError, timing: Timing, num_tokens: int, blame: Blame) -> None:
    """Outcome by blame, the table of docs/slo.md; TPOT is never met, TTFT is if token 1 came in time."""
    verdict = judge_unserved(error, timing, num_tokens, TTFT, NOTHING, limit_s=8.0)
    assert verdict.blame is blame
    assert not verdict.met_tpot and verdict.met_ttft == (num_tokens > 0 and timing.ttft_s <= 1.0)


@pytest.mark.parametrize(
    ("error", "blame"),
    [
        (NoWorker(""), Blame.WORKER_LOSS),
        (QueueFull(""), Blame.QUEUE),
        (DeadlineExceeded(""), Blame.QUEUE),
        (Stopping(""), Blame.NONE),
    ],
)
def test_rejected_is_missed(error: ServingError, blame: Blame) -> None:
    """But for what is the caller's own fault."""
    verdict = judge_rejected(error)
    assert verdict is not None and verdict.blame is blame and not verdict.met_ttft and not verdict.met_tpot
    assert judge_rejected(PromptTooLong("")) is None


def test_without_a_token_ttft_is_not_met() -> None:
    """Aborted in the queue: 0 seconds to no token is no success."""
    timing = timing_of(Marks(0.0), 0, 3.0)
    assert timing.queue_s == 3.0
    assert not judge_served(timing, 0, Slo(ttft_s=10.0), NOTHING).met_ttft
    assert judge_served(timing, 0, Slo(), NOTHING).met_ttft
