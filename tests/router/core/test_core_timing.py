"""The five phases add up whatever workers claim, and a miss has one phase to blame."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdserve.slo import Blame, Slo, Timing
from router.core.messages import SequenceTimes
from router.core.timing import Marks, breakdown, judge

SECONDS = st.floats(0.0, 10.0)
TIMES = st.none() | st.builds(SequenceTimes, st.floats(-1.0, 20.0), st.floats(-1.0, 20.0), st.just(0))


def timing_of(marks: Marks, num_tokens: int, now_s: float = 0.0) -> Timing:
    return breakdown(marks, num_tokens, now_s, prefill_worker="p", decode_worker="d", attempts=1)


def total_s(timing: Timing) -> float:
    return timing.queue_s + timing.prefill_s + timing.transfer_s + timing.decode_wait_s + timing.decode_s


@given(st.lists(SECONDS, min_size=1, max_size=6), SECONDS, st.none() | SECONDS, TIMES, TIMES, st.integers(0, 6))
def test_phases_are_a_partition(
    gaps: list[float],
    first: float,
    commit: float | None,
    prompt: SequenceTimes | None,
    decode: SequenceTimes | None,
    count: int,
) -> None:
    """None is negative, and they sum to last token minus received, even when a worker's clock lies."""
    marks = Marks(100.0, prompt=prompt, decode=decode, committed_s=None if commit is None else 100.0 + commit)
    now_s = 100.0 + first
    for n, gap in enumerate([0.0, *gaps], start=1):
        now_s += gap
        marks.left(n, now_s)
    num_tokens = min(count, len(gaps) + 1)
    timing = timing_of(marks, num_tokens, now_s)
    last_s = marks.token_left_s(num_tokens) if num_tokens else now_s
    assert total_s(timing) == pytest.approx(last_s - 100.0, abs=1e-9)
    assert min(timing.queue_s, timing.prefill_s, timing.transfer_s, timing.decode_wait_s, timing.decode_s) >= -1e-12
    if num_tokens > 1:
        assert timing.ttft_s + timing.tpot_s * (num_tokens - 1) == pytest.approx(last_s - 100.0, abs=1e-9)


def test_the_walk_by_numbers() -> None:
    """Received 0, first step 0.3, token 1 at 0.5, committed 0.9, first decode step 1.0, last token 2.5."""
    marks = Marks(0.0, prompt=SequenceTimes(0.29, 0.2, 0), decode=SequenceTimes(0.1, 0.02, 0), committed_s=0.9)
    for count, when in ((1, 0.5), (2, 1.1), (5, 2.5)):
        marks.left(count, when)
    timing = timing_of(marks, 5)
    got = (timing.queue_s, timing.prefill_s, timing.transfer_s, timing.decode_wait_s, timing.decode_s)
    assert got == pytest.approx((0.3, 0.2, 0.4, 0.1, 1.5))
    assert (timing.ttft_s, timing.tpot_s) == pytest.approx((0.5, 0.5))
    assert marks.token_left_s(2) == marks.token_left_s(1) + 0.6
    assert marks.token_left_s(3) == marks.token_left_s(99) == 2.5


def test_a_commit_before_token_one_reaches_the_router_costs_nothing() -> None:
    """Two connections: the event may overtake the token."""
    marks = Marks(0.0, committed_s=0.4)
    marks.left(1, 0.5)
    marks.left(2, 0.7)
    assert timing_of(marks, 2).transfer_s == 0.0


def phases(
    queue: float, prefill: float, transfer: float, wait: float, decode: float, n: int, attempts: int = 1
) -> Timing:
    tpot_s = (transfer + wait + decode) / (n - 1) if n > 1 else 0.0
    return Timing(queue, prefill, transfer, wait, decode, queue + prefill, tpot_s, "p", "d", attempts)


@pytest.mark.parametrize(
    ("timing", "slo", "predicted", "blame"),
    [
        (phases(9, 9, 9, 9, 9, 5), Slo(), 0.0, Blame.NONE),
        (phases(0.5, 0.5, 0, 0, 1, 5), Slo(ttft_s=1.0, tpot_s=0.25), 0.4, Blame.NONE),
        (phases(0.8, 0.5, 0, 0, 1, 5), Slo(ttft_s=1.0), 0.4, Blame.QUEUE),
        (phases(0.2, 1.5, 0, 0, 1, 5), Slo(ttft_s=1.0), 0.4, Blame.PREFILL),
        (phases(0.2, 1.5, 0, 0, 1, 5), Slo(ttft_s=1.0), 1.5, Blame.PREFILL),  # hopeless from the start
        (phases(5.0, 1.5, 0, 0, 1, 5), Slo(ttft_s=1.0), 1.5, Blame.PREFILL),
        (phases(0, 0, 0.6, 0.1, 0.5, 5), Slo(tpot_s=0.25), 0.0, Blame.TRANSFER),
        (phases(0, 0, 0.1, 0.6, 0.5, 5), Slo(tpot_s=0.25), 0.0, Blame.DECODE_WAIT),
        (phases(0, 0, 0.1, 0.1, 1.5, 5), Slo(tpot_s=0.25), 0.0, Blame.DECODE),
        (phases(2.0, 0, 0.1, 0.1, 1.5, 5), Slo(ttft_s=1.0, tpot_s=0.25), 0.0, Blame.QUEUE),  # the first miss
        (phases(2.0, 0, 0, 0, 0, 1, attempts=2), Slo(ttft_s=1.0), 0.0, Blame.WORKER_LOSS),
    ],
)
def test_the_phase_to_blame(timing: Timing, slo: Slo, predicted: float, blame: Blame) -> None:
    """TTFT before TPOT; the largest excess over what should have been."""
    n = 5 if timing.tpot_s else 1
    verdict = judge(timing, n, slo, predicted)
    assert verdict.blame is blame
    assert (verdict.met_ttft and verdict.met_tpot) == (blame is Blame.NONE)


def test_without_a_token_ttft_is_not_met() -> None:
    """Aborted in the queue: 0 seconds to no token is no success."""
    timing = timing_of(Marks(0.0), 0, now_s=3.0)
    assert timing.queue_s == 3.0
    assert not judge(timing, 0, Slo(ttft_s=10.0), 0.0).met_ttft
    assert judge(timing, 0, Slo(), 0.0).met_ttft
