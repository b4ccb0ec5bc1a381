"""One sequence's life, as a table."""

from __future__ import annotations

import pytest

from pdserve.errors import InvariantViolation
from pdserve.ids import SequenceKey
from pdserve.sampling import SamplingParams
from scheduling.sequence import NEXT, Sequence, SequenceMode, SequenceState, advance

S = SequenceState


def test_only_the_moves_of_the_table_are_possible() -> None:
    """Every other pair raises, and names both states."""
    for now in S:
        for to in S:
            if to in NEXT[now]:
                assert advance(now, to) is to
            else:
                with pytest.raises(InvariantViolation, match=f"{now.value} -> {to.value}"):
                    advance(now, to)


def test_every_state_leads_to_the_end_and_the_end_nowhere() -> None:
    """FINISHED is reachable from each state and is the only one without a way out; nothing ended runs again."""
    assert [state for state in S if not NEXT[state]] == [S.FINISHED]
    for state in S:
        seen, edge = {state}, {state}
        while edge:
            edge = set().union(*(NEXT[s] for s in edge)) - seen
            seen |= edge
        assert S.FINISHED in seen
        if state in (S.QUARANTINED, S.DRAINING):
            assert seen <= {S.QUARANTINED, S.DRAINING, S.FINISHED}


def test_delivered_tokens_are_computed_like_the_prompt_and_sampled_on_as_output() -> None:
    """A resumed attempt: prompt and outputs are all uncomputed, and the next token has the next output index."""
    params = SamplingParams(max_tokens=9, stop_token_ids=(4,), eos_token_ids=(2, 3))
    seq = Sequence(SequenceKey("r", 2), SequenceMode.DECODE, [5, 6, 7], params, output_token_ids=[8, 9])
    assert seq.token_ids == [5, 6, 7, 8, 9]
    assert (seq.num_prompt_tokens, seq.num_output_tokens, seq.num_uncomputed_tokens) == (3, 2, 5)
    assert seq.sample_request.output_index == 2
    assert seq.sample_request.token_ids is seq.token_ids
    assert seq.end_token_ids == {2, 3, 4}
    assert seq.awaits_kv and seq.may_grow
    assert seq.max_total_tokens == 12


def test_rank_is_priority_then_arrival_then_order() -> None:
    """Lower priority numbers run earlier whatever their arrival."""

    def sequence(priority: int, arrival_s: float, order: int) -> Sequence:
        seq = Sequence(
            SequenceKey("r"),
            SequenceMode.FULL,
            [1],
            SamplingParams(max_tokens=1),
            priority=priority,
            arrival_s=arrival_s,
        )
        seq.order = order
        return seq

    ranks = [sequence(*x).rank for x in ((-1, 9.0, 5), (0, 1.0, 6), (0, 1.0, 7), (0, 2.0, 1), (1, 0.0, 0))]
    assert ranks == sorted(ranks)
