"""What goes through protobuf comes back as it was; what no peer sends is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdserve import wire
from pdserve.errors import IncompatiblePeer
from pdserve.ids import SequenceKey
from pdserve.sampling import Constraint, ConstraintKind, FinishReason, SamplingParams, TokenLogprobs
from pdserve.slo import Blame, Timing, Verdict
from pdserve.v1 import inference_pb2, worker_pb2

TOKEN = st.integers(0, 2**32 - 1)
FLOAT = st.floats(-2.0, 2.0)
POSITIVE = st.floats(0.001, 1.0)
SAMPLING = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 2**32 - 1),
    temperature=st.floats(0.0, 100.0),
    top_p=POSITIVE,
    top_k=st.integers(0, 2**31 - 1),
    min_p=st.floats(0.0, 1.0),
    repetition_penalty=POSITIVE,
    presence_penalty=FLOAT,
    frequency_penalty=FLOAT,
    seed=st.integers(0, 2**64 - 1),
    choice_index=st.integers(0, 10),
    logit_bias=st.dictionaries(TOKEN, st.floats(-100, 100), max_size=5).map(lambda d: tuple(sorted(d.items()))),
    min_tokens=st.integers(0, 100),
    stop_token_ids=st.lists(TOKEN, max_size=4).map(tuple),
    eos_token_ids=st.lists(TOKEN, max_size=4).map(tuple),
    logprobs=st.none() | st.integers(0, 20),
    constraint=st.none() | st.builds(Constraint, st.sampled_from(ConstraintKind), st.text(max_size=20)),
)


@given(SAMPLING)
def test_sampling_survives_the_wire(sampling: SamplingParams) -> None:
    """Every field, over serialized bytes, comes back equal."""
    data = wire.sampling_to_proto(sampling).SerializeToString()
    assert wire.sampling_from_proto(worker_pb2.ResolvedSampling.FromString(data)) == sampling


def test_logprobs_zero_is_not_none() -> None:
    """Asking for the chosen token's log-probability alone is not asking for none."""
    asked = wire.sampling_from_proto(wire.sampling_to_proto(SamplingParams(max_tokens=1, logprobs=0)))
    silent = wire.sampling_from_proto(wire.sampling_to_proto(SamplingParams(max_tokens=1)))
    assert asked.logprobs == 0
    assert silent.logprobs is None


def test_unresolved_sampling_is_refused() -> None:
    """An empty message would mean top_p 0: never guessed at."""
    with pytest.raises(IncompatiblePeer, match="max_tokens 0"):
        wire.sampling_from_proto(worker_pb2.ResolvedSampling())


def test_unknown_constraint_is_refused() -> None:
    """A kind of a later version is never left out silently: the output would not be what was asked."""
    message = wire.sampling_to_proto(SamplingParams(max_tokens=1))
    message.constraint.kind = 77
    with pytest.raises(IncompatiblePeer, match="unknown kind of constraint 77"):
        wire.sampling_from_proto(message)


def test_key_survives_and_empty_key_is_refused() -> None:
    """A key names a request and an attempt from 1."""
    key = SequenceKey("a", 3)
    assert wire.key_from_proto(wire.key_to_proto(key)) == key
    with pytest.raises(IncompatiblePeer):
        wire.key_from_proto(worker_pb2.SequenceKey(request_id="a"))
    with pytest.raises(IncompatiblePeer):
        wire.key_from_proto(worker_pb2.SequenceKey(attempt=1))


@pytest.mark.parametrize("reason", [None, *FinishReason])
def test_finish_reason_survives(reason: FinishReason | None) -> None:
    """Every reason, and none, has its number."""
    assert wire.finish_reason_from_proto(wire.finish_reason_to_proto(reason)) is reason


def test_unknown_enums_are_refused() -> None:
    """A newer peer's value is never taken for another."""
    with pytest.raises(IncompatiblePeer, match="finish reason 77"):
        wire.finish_reason_from_proto(77)
    with pytest.raises(IncompatiblePeer, match="blame 77"):
        wire.verdict_from_proto(inference_pb2.SloOutcome(blame=77))


def test_output_carries_everything() -> None:
    """Tokens, index, log-probabilities, reason and timing of one sequence."""
    logprobs = TokenLogprobs(7, -0.25, ((7, -0.25), (9, -2.0)))
    timing = worker_pb2.SequenceTiming(queue_s=0.5, first_token_s=0.25, cached_tokens=16)
    message = wire.output_to_proto(
        SequenceKey("a", 2), 4, [7], logprobs=[logprobs], finish_reason=FinishReason.STOP, timing=timing
    )
    assert (message.first_index, list(message.token_ids)) == (4, [7])
    assert wire.key_from_proto(message.key) == SequenceKey("a", 2)
    assert wire.logprobs_from_proto(message.logprobs[0]) == logprobs
    assert wire.finish_reason_from_proto(message.finish_reason) is FinishReason.STOP
    assert message.timing.cached_tokens == 16
    assert not wire.output_to_proto(SequenceKey("a"), 0, [1]).HasField("timing")


def test_timing_survives() -> None:
    """All ten fields."""
    timing = Timing(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, "prefill-0", "decode-1", 2)
    assert wire.timing_from_proto(wire.timing_to_proto(timing)) == timing


@pytest.mark.parametrize("blame", list(Blame))
def test_verdict_survives(blame: Blame) -> None:
    """Every blame has its number."""
    verdict = Verdict(True, False, blame)
    assert wire.verdict_from_proto(wire.verdict_to_proto(verdict)) == verdict
