"""Tokens go out once each and in order, however they come."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdserve.errors import InvariantViolation
from pdserve.ids import SequenceKey
from pdserve.sampling import FinishReason, TokenLogprobs
from router.core.messages import SequenceDelta
from router.core.order import TokenOrder

KEY = SequenceKey("r")


def delta(first: int, count: int = 1, finish: FinishReason | None = None) -> SequenceDelta:
    tokens = tuple(range(1000 + first, 1000 + first + count))
    logprobs = tuple(TokenLogprobs(token, -1.0, ()) for token in tokens)
    return SequenceDelta(KEY, first, tokens, logprobs, finish, None)


@given(st.integers(1, 40), st.integers(0, 2**32), st.integers(0, 5))
def test_any_order_with_any_repeats_gives_each_token_once(total: int, seed: int, repeats: int) -> None:
    """Cut into overlapping pieces, shuffled: out come 0..n-1, each delta where the last one ended, the end last."""
    rng = random.Random(seed)
    pieces, first = [], 0
    while first < total:
        count = rng.randint(1, min(4, total - first))
        pieces.append(delta(first, count, FinishReason.STOP if first + count == total else None))
        first += count
    for _ in range(repeats):
        start = rng.randrange(total)
        pieces.append(delta(start, rng.randint(1, total - start)))
    rng.shuffle(pieces)
    order = TokenOrder(max_ahead_tokens=10_000)
    out = []
    for piece in pieces:
        before = order.next_index
        ready = order.accept(piece)
        order.check()
        for one in ready:
            assert one.first_index == before and len(one.logprobs) == len(one.token_ids)
            before = one.end
        out += ready
    assert [token for one in out for token in one.token_ids] == list(range(1000, 1000 + total))
    assert order.next_index == total and not order.has_gap
    assert sum(len(piece.token_ids) for piece in pieces) == total + order.duplicates
    assert sum(one.finish_reason is FinishReason.STOP for one in out) == 1


def test_a_finish_without_tokens_waits_its_turn() -> None:
    """The end is an event of its own, also when the token before it came late."""
    order = TokenOrder(10)
    end = SequenceDelta(KEY, 1, (), (), FinishReason.LENGTH, None)
    assert order.accept(end) == [] and order.has_gap
    ready = order.accept(delta(0))
    assert [one.finish_reason for one in ready] == [None, FinishReason.LENGTH]


def test_a_repeated_last_token_may_bring_the_finish() -> None:
    """Its token is dropped, its reason is not."""
    order = TokenOrder(10)
    order.accept(delta(0))
    ready = order.accept(delta(0, 1, FinishReason.STOP))
    assert [(one.token_ids, one.finish_reason) for one in ready] == [((), FinishReason.STOP)]
    assert order.duplicates == 1


def test_what_waits_is_bounded() -> None:
    """One token more than the limit is a failure, not memory."""
    order = TokenOrder(3)
    for first in (5, 6, 7):
        order.accept(delta(first))
    with pytest.raises(InvariantViolation, match="4 tokens wait for token 0, limit 3"):
        order.accept(delta(9))
