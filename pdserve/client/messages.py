"""Between a client's types and the messages of the service; alike for both clients."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pdserve import wire
from pdserve.client.answers import Chunk, Completion, ServedWorker, ServerInfo
from pdserve.client.options import GenerateOptions
from pdserve.errors import InvariantViolation, ServingError, error_from_status
from pdserve.sampling import Constraint, ConstraintKind
from pdserve.v1 import inference_pb2 as pb

CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),  # the last message holds the whole answer
    ("grpc.keepalive_time_ms", 10_000),  # a dead server is noticed within 13 s
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.enable_retries", 0),
]


def metadata_of(api_key: str | None) -> tuple[tuple[str, str], ...]:
    return () if api_key is None else (("authorization", f"Bearer {api_key}"),)


def request_message(prompt: str | Sequence[int], options: GenerateOptions) -> pb.GenerateRequest:
    sampling = pb.SamplingParams(
        temperature=options.temperature, top_p=options.top_p, top_k=options.top_k, min_p=options.min_p,
        repetition_penalty=options.repetition_penalty, presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty, seed=options.seed, logit_bias=options.logit_bias,
    )  # fmt: skip
    given: dict[str, Any] = {"text": prompt} if isinstance(prompt, str) else {"token_ids": pb.TokenIds(ids=prompt)}
    if options.slo is not None:
        slo_class = "" if options.slo.slo_class == "default" else options.slo.slo_class
        given["slo"] = pb.Slo(ttft_s=options.slo.ttft_s, tpot_s=options.slo.tpot_s, **{"class": slo_class})
    if options.constraint is not None:
        given |= _constraint(options.constraint)
    return pb.GenerateRequest(
        request_id=options.request_id, model=options.model, sampling=sampling, max_tokens=options.max_tokens,
        min_tokens=options.min_tokens, stop=options.stop, stop_token_ids=options.stop_token_ids,
        ignore_eos=options.ignore_eos, logprobs=options.logprobs, priority=options.priority, tenant=options.tenant,
        **given,
    )  # fmt: skip


def _constraint(constraint: Constraint) -> dict[str, Any]:
    """As the one field of the request that says it."""
    value: Any = constraint.text
    if constraint.kind is ConstraintKind.JSON_OBJECT:
        value = True
    elif constraint.kind is ConstraintKind.CHOICE:
        value = pb.Choices(texts=json.loads(constraint.text))
    return {constraint.kind.value: value}


def event_of(response: pb.GenerateResponse) -> Chunk | Completion:
    if response.WhichOneof("response") == "chunk":
        chunk = response.chunk
        logprobs = tuple(wire.logprobs_from_proto(one) for one in chunk.logprobs)
        return Chunk(response.request_id, tuple(chunk.token_ids), chunk.text, logprobs)
    complete = response.complete
    reason = wire.finish_reason_from_proto(complete.finish_reason)
    if reason is None:
        raise incomplete()
    return Completion(
        response.request_id, tuple(complete.token_ids), complete.text, reason,
        complete.usage.prompt_tokens, complete.usage.cached_tokens,
        wire.timing_from_proto(complete.timing), wire.verdict_from_proto(complete.slo),
    )  # fmt: skip


def server_info_of(response: pb.GetServerInfoResponse) -> ServerInfo:
    workers = tuple(ServedWorker(one.id, one.role, one.device, one.up) for one in response.workers)
    return ServerInfo(response.model, response.max_model_len, response.vocab_size, response.version, workers)


def error_of(error: Any) -> ServingError:
    return error_from_status(error.code().name, error.details() or error.code().name)


def incomplete() -> ServingError:
    return InvariantViolation("the stream ended without a complete message")
