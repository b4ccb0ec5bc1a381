"""The client against a server that answers by the book, and one that does not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any

import grpc
import pytest

from pdserve.client import AsyncClient, Chunk, Client, Completion, GenerateOptions
from pdserve.errors import (
    HandoffError,
    InvariantViolation,
    NotFound,
    RequestError,
    ServingError,
    Unauthenticated,
)
from pdserve.sampling import Constraint, ConstraintKind, FinishReason, choice_of
from pdserve.slo import Blame, Slo
from pdserve.v1 import inference_pb2 as pb
from pdserve.v1 import inference_pb2_grpc as rpc

TIMING = pb.Timing(ttft_s=0.5, tpot_s=0.25, prefill_worker="prefill-0", decode_worker="decode-0", attempts=1)


class Server(rpc.InferenceServiceServicer):  # type: ignore[misc]  # generated without types
    """Says what a prompt tells it to say; remembers the last request."""

    def __init__(self) -> None:
        self.asked = pb.GenerateRequest()
        self.left = Event()

    def Generate(self, request: pb.GenerateRequest, context: Any) -> Iterator[pb.GenerateResponse]:
        self.asked = request
        if dict(context.invocation_metadata()).get("authorization") != "Bearer key":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "an API key is needed")
        if request.text == "bad":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "prompt is bad")
        context.add_callback(self.left.set)
        yield pb.GenerateResponse(request_id="r", chunk=pb.GenerateChunk(token_ids=[4], text="fo"))
        if request.text == "endless":
            self.left.wait(30.0)
        if request.text == "cut":
            return
        usage = pb.Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1)
        complete = pb.GenerateComplete(
            token_ids=[4, 5], text="four", finish_reason=pb.FINISH_REASON_STOP, usage=usage, timing=TIMING,
            slo=pb.SloOutcome(met_ttft=False, met_tpot=True, blame=pb.BLAME_QUEUE),
        )  # fmt: skip
        yield pb.GenerateResponse(request_id="r", complete=complete)

    def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.GetServerInfoResponse:
        workers = [pb.WorkerInfo(id="decode-0", role="decode", device="cpu", up=True)]
        return pb.GetServerInfoResponse(model="m", max_model_len=8, vocab_size=9, version="1", workers=workers)

    def Abort(self, request: pb.AbortRequest, context: Any) -> pb.AbortResponse:
        if request.request_id != "r":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such request is running")
        return pb.AbortResponse()


@dataclass(frozen=True)
class Running:
    """A server and where it listens."""

    server: Server
    address: str


@pytest.fixture
def running() -> Iterator[Running]:
    with ThreadPoolExecutor(4) as threads:
        server, grpc_server = Server(), grpc.server(threads)
        rpc.add_InferenceServiceServicer_to_server(server, grpc_server)
        port = grpc_server.add_insecure_port("127.0.0.1:0")
        grpc_server.start()
        try:
            yield Running(server, f"127.0.0.1:{port}")
        finally:
            server.left.set()
            grpc_server.stop(0).wait(10.0)


def collect(address: str, prompt: str | list[int], options: GenerateOptions, use_async: bool) -> list[Any]:
    """All events of one request, by either client."""
    if not use_async:
        with Client(address, api_key="key") as client:
            return list(client.stream(prompt, options))

    async def run() -> list[Any]:
        async with AsyncClient(address, api_key="key") as client:
            return [event async for event in client.stream(prompt, options)]

    return asyncio.run(run())


@pytest.mark.parametrize("use_async", [False, True])
def test_a_stream_is_chunks_and_a_completion(running: Running, use_async: bool) -> None:
    """Both clients give the same events, with the server's timing and verdict."""
    chunk, done = collect(running.address, "hi", GenerateOptions(), use_async)
    assert chunk == Chunk("r", (4,), "fo", ())
    assert isinstance(done, Completion)
    assert (done.token_ids, done.text, done.finish_reason) == ((4, 5), "four", FinishReason.STOP)
    assert (done.prompt_tokens, done.cached_tokens) == (3, 1)
    assert (done.timing.ttft_s, done.timing.prefill_worker) == (0.5, "prefill-0")
    assert (done.verdict.met_ttft, done.verdict.met_tpot, done.verdict.blame) == (False, True, Blame.QUEUE)


def test_what_is_not_said_is_not_sent(running: Running) -> None:
    """Absent options stay absent; a temperature of 0 is not absent."""
    collect(running.address, "hi", GenerateOptions(), False)
    sampling = running.server.asked.sampling
    assert not any(sampling.HasField(name) for name in ("temperature", "top_p", "top_k", "min_p", "seed"))
    assert not running.server.asked.HasField("max_tokens")
    options = GenerateOptions(
        temperature=0.0, seed=7, max_tokens=3, stop=["x"], logit_bias={2: -1.0}, slo=Slo("chat", ttft_s=0.5), tenant="t"
    )
    collect(running.address, [1, 2], options, False)
    asked = running.server.asked
    assert (asked.sampling.HasField("temperature"), asked.sampling.seed, asked.max_tokens) == (True, 7, 3)
    assert (list(asked.stop), dict(asked.sampling.logit_bias), asked.tenant) == (["x"], {2: -1.0}, "t")
    assert (list(asked.token_ids.ids), getattr(asked.slo, "class"), asked.slo.ttft_s) == ([1, 2], "chat", 0.5)
    assert not asked.slo.HasField("tpot_s")


@pytest.mark.parametrize("use_async", [False, True])
@pytest.mark.parametrize(("prompt", "error"), [("bad", RequestError)])
def test_a_status_becomes_its_error(running: Running, prompt: str, error: type[ServingError], use_async: bool) -> None:
    """With the server's message."""
    with pytest.raises(error, match="prompt is bad"):
        collect(running.address, prompt, GenerateOptions(), use_async)


def test_a_stream_without_an_end_is_an_error(running: Running) -> None:
    """No half answer is taken for a whole one."""
    with Client(running.address, api_key="key") as client, pytest.raises(InvariantViolation):
        client.generate("cut")


def test_without_the_key_nothing_is_served(running: Running) -> None:
    """The server's refusal arrives as what it is."""
    with Client(running.address) as client, pytest.raises(Unauthenticated):
        client.generate("hi")


def test_leaving_a_stream_cancels_the_request(running: Running) -> None:
    """The server sees the call end."""
    with Client(running.address, api_key="key") as client:
        events = client.stream("endless")
        assert isinstance(next(events), Chunk)
        events.close()  # type: ignore[attr-defined]  # a generator
        assert running.server.left.wait(10.0)


def test_leaving_an_asyncio_stream_cancels_the_request(running: Running) -> None:
    """The same for the other client."""

    async def run() -> bool:
        async with AsyncClient(running.address, api_key="key") as client:
            events = client.stream("endless")
            assert isinstance(await anext(events), Chunk)
            await events.aclose()  # type: ignore[attr-defined]  # a generator
            return await asyncio.to_thread(running.server.left.wait, 10.0)

    assert asyncio.run(run())


def test_info_and_abort(running: Running) -> None:
    """The two small calls, and an unknown request."""
    with Client(running.address) as client:
        assert client.server_info().workers[0].id == "decode-0"
        client.abort("r")
        with pytest.raises(NotFound, match="no such request"):
            client.abort("x")


def test_nobody_there_is_unavailable() -> None:
    """An error of the kind that may be tried again."""
    with Client("127.0.0.1:1") as client, pytest.raises(HandoffError):
        client.generate("hi")


@pytest.mark.parametrize(
    ("constraint", "field", "value"),
    [
        (Constraint(ConstraintKind.JSON_SCHEMA, "{}"), "json_schema", "{}"),
        (Constraint(ConstraintKind.JSON_OBJECT), "json_object", True),
        (Constraint(ConstraintKind.REGEX, "a+"), "regex", "a+"),
        (Constraint(ConstraintKind.GRAMMAR, 'start: "a"'), "grammar", 'start: "a"'),
        (choice_of(["a", "é"]), "choice", pb.Choices(texts=["a", "é"])),
    ],
)
def test_a_constraint_is_asked_in_its_own_field(
    running: Running, constraint: Constraint, field: str, value: object
) -> None:
    with Client(running.address, api_key="key") as client:
        client.generate("x", GenerateOptions(constraint=constraint))
    assert running.server.asked.WhichOneof("constraint") == field
    assert getattr(running.server.asked, field) == value
