"""Between protobuf messages and pdserve's own types; done once, at the edge of each process.

`x_to_proto` never fails on a value of its type. `x_from_proto` refuses what no peer of this protocol version sends
with `IncompatiblePeer`, so that a foreign or newer peer is an operator's matter and never a wrong token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pdserve.errors import IncompatiblePeer
from pdserve.ids import SequenceKey
from pdserve.sampling import Constraint, ConstraintKind, FinishReason, SamplingParams, TokenLogprobs
from pdserve.slo import Blame, Timing, Verdict
from pdserve.v1 import inference_pb2, worker_pb2

_FINISH_TO_PROTO = {
    None: inference_pb2.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: inference_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: inference_pb2.FINISH_REASON_LENGTH,
    FinishReason.ABORT: inference_pb2.FINISH_REASON_ABORT,
}
_FINISH_FROM_PROTO: dict[int, FinishReason | None] = {number: reason for reason, number in _FINISH_TO_PROTO.items()}

_BLAME_TO_PROTO = {
    Blame.NONE: inference_pb2.BLAME_UNSPECIFIED,
    Blame.QUEUE: inference_pb2.BLAME_QUEUE,
    Blame.PREFILL: inference_pb2.BLAME_PREFILL,
    Blame.TRANSFER: inference_pb2.BLAME_TRANSFER,
    Blame.DECODE_WAIT: inference_pb2.BLAME_DECODE_WAIT,
    Blame.DECODE: inference_pb2.BLAME_DECODE,
    Blame.WORKER_LOSS: inference_pb2.BLAME_WORKER_LOSS,
}
_BLAME_FROM_PROTO: dict[int, Blame] = {number: blame for blame, number in _BLAME_TO_PROTO.items()}

_KIND_TO_PROTO = {
    ConstraintKind.JSON_SCHEMA: worker_pb2.CONSTRAINT_KIND_JSON_SCHEMA,
    ConstraintKind.JSON_OBJECT: worker_pb2.CONSTRAINT_KIND_JSON_OBJECT,
    ConstraintKind.REGEX: worker_pb2.CONSTRAINT_KIND_REGEX,
    ConstraintKind.CHOICE: worker_pb2.CONSTRAINT_KIND_CHOICE,
    ConstraintKind.GRAMMAR: worker_pb2.CONSTRAINT_KIND_GRAMMAR,
}
_KIND_FROM_PROTO: dict[int, ConstraintKind] = {number: kind for kind, number in _KIND_TO_PROTO.items()}

_TIMING_FIELDS = (
    "queue_s", "prefill_s", "transfer_s", "decode_wait_s", "decode_s", "ttft_s", "tpot_s",
    "prefill_worker", "decode_worker", "attempts",
)  # fmt: skip


# ---- identities ----


def key_to_proto(key: SequenceKey) -> worker_pb2.SequenceKey:
    return worker_pb2.SequenceKey(request_id=key.request_id, attempt=key.attempt)


def key_from_proto(message: worker_pb2.SequenceKey) -> SequenceKey:
    """The key; `IncompatiblePeer` when it names nothing (an empty id, attempt 0)."""
    if not message.request_id or not message.attempt:
        raise IncompatiblePeer(f"sequence key names nothing: attempt {message.attempt}")
    return SequenceKey(message.request_id, message.attempt)


# ---- sampling ----


def sampling_to_proto(sampling: SamplingParams) -> worker_pb2.ResolvedSampling:
    return worker_pb2.ResolvedSampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        seed=sampling.seed,
        logit_bias=dict(sampling.logit_bias),
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        stop_token_ids=sampling.stop_token_ids,
        eos_token_ids=sampling.eos_token_ids,
        logprobs=sampling.logprobs,
        choice_index=sampling.choice_index,
        constraint=None if sampling.constraint is None else _constraint_to_proto(sampling.constraint),
    )


def sampling_from_proto(message: worker_pb2.ResolvedSampling) -> SamplingParams:
    """The parameters, logit bias in order of token id (a map has no order of its own).

    Errors: `IncompatiblePeer` for a message that was never filled in (max_tokens, top_p or repetition_penalty 0).
    """
    if not message.max_tokens or not message.top_p or not message.repetition_penalty:
        raise IncompatiblePeer(
            "sampling parameters are not resolved: "
            f"max_tokens {message.max_tokens}, top_p {message.top_p}, repetition_penalty {message.repetition_penalty}"
        )
    return SamplingParams(
        max_tokens=message.max_tokens,
        temperature=message.temperature,
        top_p=message.top_p,
        top_k=message.top_k,
        min_p=message.min_p,
        repetition_penalty=message.repetition_penalty,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        seed=message.seed,
        choice_index=message.choice_index,
        logit_bias=tuple(sorted(message.logit_bias.items())),
        min_tokens=message.min_tokens,
        stop_token_ids=tuple(message.stop_token_ids),
        eos_token_ids=tuple(message.eos_token_ids),
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        constraint=_constraint_from_proto(message.constraint) if message.HasField("constraint") else None,
    )


def _constraint_to_proto(constraint: Constraint) -> worker_pb2.Constraint:
    return worker_pb2.Constraint(kind=_KIND_TO_PROTO[constraint.kind], text=constraint.text)


def _constraint_from_proto(message: worker_pb2.Constraint) -> Constraint:
    if message.kind not in _KIND_FROM_PROTO:
        raise IncompatiblePeer(f"unknown kind of constraint {message.kind}")
    return Constraint(_KIND_FROM_PROTO[message.kind], message.text)


def finish_reason_to_proto(reason: FinishReason | None) -> inference_pb2.FinishReason:
    """The enum's number; None (it goes on) is UNSPECIFIED."""
    return _FINISH_TO_PROTO[reason]


def finish_reason_from_proto(number: int) -> FinishReason | None:
    """None for UNSPECIFIED: it goes on."""
    if number not in _FINISH_FROM_PROTO:
        raise IncompatiblePeer(f"unknown finish reason {number}")
    return _FINISH_FROM_PROTO[number]


def logprobs_to_proto(logprobs: TokenLogprobs) -> inference_pb2.TokenLogprobs:
    top = [inference_pb2.TopLogprob(token_id=token, logprob=value) for token, value in logprobs.top]
    return inference_pb2.TokenLogprobs(token_id=logprobs.token_id, logprob=logprobs.logprob, top=top)


def logprobs_from_proto(message: inference_pb2.TokenLogprobs) -> TokenLogprobs:
    return TokenLogprobs(
        token_id=message.token_id,
        logprob=message.logprob,
        top=tuple((entry.token_id, entry.logprob) for entry in message.top),
    )


# ---- a worker's output ----


def output_to_proto(
    key: SequenceKey,
    first_index: int,
    token_ids: Sequence[int],
    *,
    logprobs: Iterable[TokenLogprobs] = (),
    finish_reason: FinishReason | None = None,
    timing: worker_pb2.SequenceTiming | None = None,
) -> worker_pb2.SequenceOutput:
    """One sequence's share of a `StepOutput`."""
    return worker_pb2.SequenceOutput(
        key=key_to_proto(key),
        first_index=first_index,
        token_ids=token_ids,
        logprobs=[logprobs_to_proto(entry) for entry in logprobs],
        finish_reason=finish_reason_to_proto(finish_reason),
        timing=timing,
    )


# ---- the end of a request ----


def timing_to_proto(timing: Timing) -> inference_pb2.Timing:
    return inference_pb2.Timing(**{name: getattr(timing, name) for name in _TIMING_FIELDS})


def timing_from_proto(message: inference_pb2.Timing) -> Timing:
    return Timing(**{name: getattr(message, name) for name in _TIMING_FIELDS})


def verdict_to_proto(verdict: Verdict) -> inference_pb2.SloOutcome:
    return inference_pb2.SloOutcome(
        met_ttft=verdict.met_ttft, met_tpot=verdict.met_tpot, blame=_BLAME_TO_PROTO[verdict.blame]
    )


def verdict_from_proto(message: inference_pb2.SloOutcome) -> Verdict:
    if message.blame not in _BLAME_FROM_PROTO:
        raise IncompatiblePeer(f"unknown blame {message.blame}")
    return Verdict(message.met_ttft, message.met_tpot, _BLAME_FROM_PROTO[message.blame])
