"""A client: prompts in, tokens and text out, over gRPC.

    with Client("127.0.0.1:50051") as client:
        for event in client.stream("Once upon a time", GenerateOptions(max_tokens=64)):
            ...                                     # Chunk, Chunk, ..., Completion

Errors are those of pdserve/errors.py, as the server meant them. Nothing is retried: the router does that.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from pdserve import wire
from pdserve.errors import InvariantViolation, ServingError, error_from_status
from pdserve.sampling import Constraint, ConstraintKind, FinishReason, TokenLogprobs
from pdserve.slo import Slo, Timing, Verdict
from pdserve.v1 import inference_pb2 as pb
from pdserve.v1 import inference_pb2_grpc as rpc

DEFAULT_TIMEOUT_S = 600.0
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),  # the last message holds the whole answer
    ("grpc.keepalive_time_ms", 10_000),  # a dead server is noticed within 13 s
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.enable_retries", 0),
]


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """How to generate; None leaves it to the server, whose defaults are the protocol's (greedy)."""

    max_tokens: int | None = None  # None: the rest of the context
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # None: none; n: the chosen token's and the n best
    constraint: Constraint | None = None  # what the text must be
    slo: Slo | None = None
    priority: int = 0  # lower runs earlier
    tenant: str = ""
    model: str = ""  # empty: the served one
    request_id: str = ""  # empty: the router makes one
    timeout_s: float = DEFAULT_TIMEOUT_S  # the request's deadline, from now


@dataclass(frozen=True, slots=True)
class Chunk:
    """What is new."""

    request_id: str
    token_ids: tuple[int, ...]
    text: str  # may lag behind token_ids
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of a request that was served, and all of it."""

    request_id: str
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int  # of the prompt, found in a prefix cache
    timing: Timing
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class ServedWorker:
    """One worker of a server."""

    id: str
    role: str
    device: str
    up: bool


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server serves."""

    model: str
    max_model_len: int
    vocab_size: int
    version: str
    workers: tuple[ServedWorker, ...]


class Client:
    """Blocking calls; safe to share between threads."""

    def __init__(self, address: str, *, api_key: str | None = None) -> None:
        self._channel = grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._stub = rpc.InferenceServiceStub(self._channel)
        self._metadata = _metadata(api_key)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def stream(
        self, prompt: str | Sequence[int], options: GenerateOptions = GenerateOptions()
    ) -> Iterator[Chunk | Completion]:
        """Chunks, then one Completion; leaving early cancels the request. Raises ServingError."""
        call = self._stub.Generate(_request(prompt, options), timeout=options.timeout_s, metadata=self._metadata)
        try:
            for response in call:
                yield _event(response)
        except grpc.RpcError as error:
            raise _error(error) from None
        finally:
            call.cancel()

    def generate(self, prompt: str | Sequence[int], options: GenerateOptions = GenerateOptions()) -> Completion:
        """The whole completion. Raises ServingError."""
        with closing(self.stream(prompt, options)) as events:  # type: ignore[type-var]
            for event in events:
                if isinstance(event, Completion):
                    return event
        raise _incomplete()

    def server_info(self, timeout_s: float = 10.0) -> ServerInfo:
        """What is served and by whom. Raises ServingError."""
        try:
            return _info(
                self._stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=timeout_s, metadata=self._metadata)
            )
        except grpc.RpcError as error:
            raise _error(error) from None

    def abort(self, request_id: str, tenant: str = "", timeout_s: float = 10.0) -> None:
        """Cancel a running request; raises NotFound when there is none."""
        message = pb.AbortRequest(request_id=request_id, tenant=tenant)
        try:
            self._stub.Abort(message, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _error(error) from None

    def close(self) -> None:
        self._channel.close()


class AsyncClient:
    """The same for asyncio; belongs to one event loop."""

    def __init__(self, address: str, *, api_key: str | None = None) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._stub = rpc.InferenceServiceStub(self._channel)
        self._metadata = _metadata(api_key)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def stream(
        self, prompt: str | Sequence[int], options: GenerateOptions = GenerateOptions()
    ) -> AsyncIterator[Chunk | Completion]:
        """Chunks, then one Completion; leaving early cancels the request. Raises ServingError."""
        call = self._stub.Generate(_request(prompt, options), timeout=options.timeout_s, metadata=self._metadata)
        try:
            async for response in call:
                yield _event(response)
        except grpc.aio.AioRpcError as error:
            raise _error(error) from None
        finally:
            call.cancel()

    async def generate(self, prompt: str | Sequence[int], options: GenerateOptions = GenerateOptions()) -> Completion:
        """The whole completion. Raises ServingError."""
        async with aclosing(self.stream(prompt, options)) as events:  # type: ignore[type-var]
            async for event in events:
                if isinstance(event, Completion):
                    return event
        raise _incomplete()

    async def server_info(self, timeout_s: float = 10.0) -> ServerInfo:
        """What is served and by whom. Raises ServingError."""
        call = self._stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=timeout_s, metadata=self._metadata)
        try:
            return _info(await call)
        except grpc.aio.AioRpcError as error:
            raise _error(error) from None

    async def abort(self, request_id: str, tenant: str = "", timeout_s: float = 10.0) -> None:
        """Cancel a running request; raises NotFound when there is none."""
        message = pb.AbortRequest(request_id=request_id, tenant=tenant)
        try:
            await self._stub.Abort(message, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise _error(error) from None

    async def close(self) -> None:
        await self._channel.close()


def _metadata(api_key: str | None) -> tuple[tuple[str, str], ...]:
    return () if api_key is None else (("authorization", f"Bearer {api_key}"),)


def _request(prompt: str | Sequence[int], options: GenerateOptions) -> pb.GenerateRequest:
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


def _event(response: pb.GenerateResponse) -> Chunk | Completion:
    if response.WhichOneof("response") == "chunk":
        chunk = response.chunk
        logprobs = tuple(wire.logprobs_from_proto(one) for one in chunk.logprobs)
        return Chunk(response.request_id, tuple(chunk.token_ids), chunk.text, logprobs)
    complete = response.complete
    reason = wire.finish_reason_from_proto(complete.finish_reason)
    if reason is None:
        raise _incomplete()
    return Completion(
        response.request_id, tuple(complete.token_ids), complete.text, reason,
        complete.usage.prompt_tokens, complete.usage.cached_tokens,
        wire.timing_from_proto(complete.timing), wire.verdict_from_proto(complete.slo),
    )  # fmt: skip


def _info(response: pb.GetServerInfoResponse) -> ServerInfo:
    workers = tuple(ServedWorker(one.id, one.role, one.device, one.up) for one in response.workers)
    return ServerInfo(response.model, response.max_model_len, response.vocab_size, response.version, workers)


def _error(error: Any) -> ServingError:
    return error_from_status(error.code().name, error.details() or error.code().name)


def _incomplete() -> ServingError:
    return InvariantViolation("the stream ended without a complete message")
