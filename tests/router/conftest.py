"""A core that plays scripts, behind the real front doors on real sockets."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import httpx
import pytest

from deploy.models.byte_bpe import END_OF_TEXT_ID, IM_END_ID, write_tokenizer
from pdserve.clock import MonotonicClock
from pdserve.errors import AlreadyExists, Cancelled, ServingError
from pdserve.sampling import FinishReason, TokenLogprobs
from pdserve.slo import Blame, Timing, Verdict
from pdserve.v1 import inference_pb2_grpc as pb_grpc
from router.generation import FrontDesk
from router.grpc_front import serve_grpc
from router.http_front import build_app, serve_http
from router.interface import Finished, MetricsTarget, ModelCard, RouterRequest, TokenDelta, WorkerView
from router.limits import FrontConfig
from router.text import Tokenizer, load_tokenizer

CONTEXT = 256
TIMING = Timing(0.125, 0.25, 0.5, 0.0, 1.0, 0.375, 0.0625, "prefill-0", "decode-0", 1)

# What a script is made of: tokens of one delta, an event to wait for, an error to end with.
Step = Sequence[int] | asyncio.Event | ServingError


class FakeStream:
    """A `TokenStream` that plays a script."""

    def __init__(self, core: FakeCore, request: RouterRequest, steps: Iterable[Step]) -> None:
        self.request = request
        self.cancelled = asyncio.Event()  # by the front, before the end
        self.finished_at: int | None = None  # tokens at which the front found a stop string
        self.num_given = 0
        self._core = core
        self._steps = steps
        self._ended = False
        self._aborted = asyncio.Event()
        self._news: deque[TokenDelta | Finished | Exception] = deque()
        self._player: asyncio.Task[None] | None = None

    def listen(self, wake: Callable[[], None]) -> None:
        self._player = asyncio.create_task(self._play(wake))

    def poll(self) -> TokenDelta | Finished | None:
        event = self._news.popleft() if self._news else None
        if isinstance(event, Exception):
            raise event
        return event

    async def _play(self, wake: Callable[[], None]) -> None:
        """The script's events, each followed by its wake."""
        try:
            async for event in self._events():
                self._news.append(event)
                wake()
                await asyncio.sleep(0)  # the reader looks before the next
        except Exception as error:
            self._news.append(error)
            wake()

    async def _events(self) -> AsyncIterator[TokenDelta | Finished]:
        try:
            for step in self._steps:
                if self._ended:
                    return
                if isinstance(step, ServingError):
                    raise step
                if isinstance(step, asyncio.Event):
                    await self._wait(step)
                    if self._aborted.is_set():
                        break
                    continue
                ids = tuple(step)[: self.request.sampling.max_tokens - self.num_given]
                if not ids:
                    break
                yield TokenDelta(self.num_given, ids, self._logprobs(ids), 3)
                self.num_given += len(ids)
            if self._ended:
                return
            full = self.num_given == self.request.sampling.max_tokens
            reason = FinishReason.LENGTH if full else FinishReason.STOP
            self._end()
            yield self._finished(FinishReason.ABORT if self._aborted.is_set() else reason, self.num_given)
        finally:
            self._end()

    def cancel(self) -> None:
        if not self._ended:
            self.cancelled.set()
            self._end()

    def finish(self, num_tokens: int) -> Finished:
        self.finished_at = num_tokens
        self._end()
        return self._finished(FinishReason.STOP, num_tokens)

    def abort(self) -> None:
        self._aborted.set()

    async def _wait(self, event: asyncio.Event) -> None:
        waits = [asyncio.create_task(e.wait()) for e in (event, self.cancelled, self._aborted)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self.cancelled.is_set():
            raise Cancelled("cancelled")

    def _end(self) -> None:
        self._ended = True
        self._core.running.pop(self.request.request_id, None)

    def _logprobs(self, ids: Sequence[int]) -> tuple[TokenLogprobs, ...]:
        wanted = self.request.sampling.logprobs
        if wanted is None:
            return ()
        return tuple(TokenLogprobs(i, -0.5, tuple((i + n, -0.5 - n) for n in range(wanted))) for i in ids)

    def _finished(self, reason: FinishReason, num_tokens: int) -> Finished:
        return Finished(reason, num_tokens, 3, TIMING, Verdict(True, False, Blame.TRANSFER))


@dataclass
class FakeCore:
    """A `RouterCore` without workers."""

    script: Callable[[RouterRequest], Iterable[Step]] = lambda request: [[100 + n] for n in range(4)]
    not_ready: str = ""
    refuse: ServingError | None = None
    submitted: list[RouterRequest] = field(default_factory=list)
    streams: list[FakeStream] = field(default_factory=list)
    running: dict[str, FakeStream] = field(default_factory=dict)
    on_submit: asyncio.Event = field(default_factory=asyncio.Event)
    rejected: list[tuple[RouterRequest, ServingError]] = field(default_factory=list)  # before submit

    def submit(self, request: RouterRequest) -> FakeStream:
        if self.refuse is not None:
            raise self.refuse
        if request.request_id in self.running:
            raise AlreadyExists(f"request {request.request_id} is running", field="request_id")
        stream = FakeStream(self, request, self.script(request))
        self.submitted.append(request)
        self.streams.append(stream)
        self.running[request.request_id] = stream
        self.on_submit.set()
        return stream

    def abort(self, request_id: str, tenant: str) -> bool:
        stream = self.running.get(request_id)
        if stream is None or stream.request.tenant != tenant:
            return False
        stream.abort()
        return True

    def workers(self) -> list[WorkerView]:
        return [WorkerView("prefill-0", "prefill", "cpu", True), WorkerView("decode-0", "decode", "cpu", False)]

    def why_not_ready(self) -> str:
        return self.not_ready

    def metrics_text(self) -> bytes:
        return b"# TYPE pdserve_requests_total counter\npdserve_requests_total 1.0\n"

    def metrics_targets(self) -> list[MetricsTarget]:
        return [MetricsTarget("127.0.0.1:9401", "decode-0", "decode")]

    def reject(self, request: RouterRequest, error: ServingError) -> None:
        self.rejected.append((request, error))


@dataclass
class GrpcDoor:
    """The open gRPC door, and a client of it."""

    desk: FrontDesk
    port: int
    channel: grpc.aio.Channel
    stub: pb_grpc.InferenceServiceStub


@dataclass
class HttpDoor:
    """The open HTTP door, and a client of it."""

    desk: FrontDesk
    http_port: int
    http: httpx.AsyncClient


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer of a checkpoint: 512 tokens, BOS first, a chat template."""
    directory = tmp_path_factory.mktemp("model")
    write_tokenizer(directory, 512, CONTEXT, add_bos=True)
    return directory


@pytest.fixture(scope="session")
def tokenizer(model_directory: Path) -> Tokenizer:
    return load_tokenizer(model_directory)


@pytest.fixture
def core() -> FakeCore:
    return FakeCore()


@pytest.fixture(scope="session")
def card() -> ModelCard:
    return ModelCard("tiny", CONTEXT, 512, (END_OF_TEXT_ID, IM_END_ID))


@pytest.fixture
def open_desk(core: FakeCore, card: ModelCard, tokenizer: Tokenizer) -> Callable[..., FrontDesk]:
    """A desk with configuration changed; limits=... replaces single limits. Call inside a running loop."""

    def make(limits: dict[str, object] | None = None, **config: object) -> FrontDesk:
        base = FrontConfig(**config)
        return FrontDesk(
            core, card, tokenizer, replace(base, limits=replace(base.limits, **limits or {})), MonotonicClock()
        )

    return make


@pytest.fixture
def open_doors(open_desk: Callable[..., FrontDesk]) -> Callable[..., object]:
    """An async context manager: a GrpcDoor on a free port of 127.0.0.1."""

    @asynccontextmanager
    async def door(**config: object) -> AsyncIterator[GrpcDoor]:
        desk = open_desk(**config)
        front = await serve_grpc(desk, "127.0.0.1:0")
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{front.port}", options=options) as channel:
                yield GrpcDoor(desk, front.port, channel, pb_grpc.InferenceServiceStub(channel))
        finally:
            await front.stop(0)
            desk.close()

    return door


@pytest.fixture
def open_http(open_desk: Callable[..., FrontDesk]) -> Callable[..., object]:
    """An async context manager: an HttpDoor on a free port of 127.0.0.1."""

    @asynccontextmanager
    async def door(**config: object) -> AsyncIterator[HttpDoor]:
        desk = open_desk(**config)
        front = await serve_http(build_app(desk), "127.0.0.1", 0)
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{front.port}", timeout=10) as client:
                yield HttpDoor(desk, front.port, client)
        finally:
            await front.stop(1)
            desk.close()

    return door
