"""What the gRPC front costs a token: a fake core through the front door, beside a bare grpc.aio stream.

    python -m bench.router_stream [--streams 1 16 64] [--tokens 512] [--rounds 3]

Server and client are two processes, as they are in service. Both servers make the same number of tokens in the same
bursts (one token of every stream each step, as a decode worker's message brings them) and write one protobuf message
each; the bare one has its bytes ready and does nothing else. Printed for each number of streams, flat out and with
steps paced at --step-s: tokens/s, messages a token, processor time of the server a token, and the time from a token's
step to its arrival at the client (perf_counter is one clock for all processes of a Linux machine).
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc

from deploy.models.byte_bpe import write_tokenizer
from pdserve.clock import MonotonicClock
from pdserve.sampling import FinishReason
from pdserve.slo import Blame, Timing, Verdict
from pdserve.v1 import inference_pb2 as pb
from router.generation import FrontDesk
from router.grpc_front import serve_grpc
from router.interface import Finished, ModelCard, RouterRequest, TokenDelta, WorkerView
from router.limits import FrontConfig
from router.text import load_tokenizer

GENERATE = "/pdserve.v1.InferenceService/Generate"
FRONT, BARE = "front", "bare"


class StepClock:
    """Wakes every stream once a step, and remembers when each step was."""

    def __init__(self) -> None:
        self._next: asyncio.Event = asyncio.Event()
        self._step_at_s = 0.0
        self.released: dict[int, list[float]] = {}  # stream number -> the step of each of its tokens

    async def wait(self, stream: int) -> None:
        await self._next.wait()
        self.released.setdefault(stream, []).append(self._step_at_s)

    async def run(self, step_s: float) -> None:
        while True:
            await asyncio.sleep(step_s)
            self._step_at_s = time.perf_counter()
            self._next.set()
            self._next = asyncio.Event()


class SteppedStream:
    """A `TokenStream` of one token a step."""

    def __init__(self, clock: StepClock, stream: int, num_tokens: int) -> None:
        self._clock = clock
        self._stream = stream
        self._num_tokens = num_tokens

    async def __aiter__(self) -> AsyncIterator[TokenDelta | Finished]:
        for index in range(self._num_tokens):
            await self._clock.wait(self._stream)
            yield TokenDelta(index, (300 + index % 200,), (), 0)
        yield self.finish(self._num_tokens)

    def cancel(self) -> None:
        pass

    def finish(self, num_tokens: int) -> Finished:
        timing = Timing(0, 0, 0, 0, 0, 0, 0, "p", "d", 1)
        return Finished(FinishReason.LENGTH, num_tokens, 0, timing, Verdict(True, True, Blame.NONE))


@dataclass
class SteppedCore:
    """A `RouterCore` without workers."""

    clock: StepClock

    def submit(self, request: RouterRequest) -> SteppedStream:
        return SteppedStream(self.clock, request.priority, request.sampling.max_tokens)

    def abort(self, request_id: str, tenant: str) -> bool:
        return False

    def workers(self) -> list[WorkerView]:
        return []

    def is_ready(self) -> bool:
        return True

    def metrics_text(self) -> bytes:
        return b""


async def serve(kind: str, step_s: float, pipe: Connection) -> None:
    """One server until the parent closes the pipe."""
    clock = StepClock()
    stepping = asyncio.create_task(clock.run(step_s))
    with TemporaryDirectory() as name:
        if kind == FRONT:
            write_tokenizer(Path(name), 512, 4096, add_bos=True)
            card = ModelCard("bench", 4096, 512, ())
            desk = FrontDesk(SteppedCore(clock), card, load_tokenizer(name), FrontConfig(), MonotonicClock())
            front = await serve_grpc(desk, "127.0.0.1:0")
            port, server = front.port, front.server
        else:
            server, port = await serve_bare(clock)
        begin_s = time.process_time()
        pipe.send(port)
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        pipe.send((time.process_time() - begin_s, clock.released))
        stepping.cancel()
        await server.stop(0)


async def serve_bare(clock: StepClock) -> tuple[Any, int]:
    message = pb.GenerateResponse(request_id="r" * 36, chunk=pb.GenerateChunk(token_ids=[300], text=" a"))
    payload = message.SerializeToString()

    async def generate(raw: bytes, context: Any) -> None:
        request = pb.GenerateRequest.FromString(raw)
        for _ in range(request.max_tokens):
            await clock.wait(request.priority)
            await context.write(payload)

    server = grpc.aio.server()
    handlers = {"Generate": grpc.unary_stream_rpc_method_handler(generate)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("pdserve.v1.InferenceService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, port


def run_server(kind: str, step_s: float, pipe: Connection) -> None:
    asyncio.run(serve(kind, step_s, pipe))


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one server."""

    tokens_per_s: float
    messages_per_token: float
    processor_s_per_token: float  # of the server
    delay_p50_s: float  # a token's step to its arrival
    delay_p99_s: float


@dataclass(frozen=True, slots=True)
class Arrival:
    """One message, as it came."""

    at_s: float
    raw: bytes


async def read_streams(port: int, num_streams: int, num_tokens: int) -> tuple[float, list[list[Arrival]]]:
    """Elapsed seconds, and every stream's messages."""

    async def read(channel: Any, stream: int) -> list[Arrival]:
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5, 6, 7]), max_tokens=num_tokens, priority=stream)
        call = channel.unary_stream(GENERATE, request_serializer=None, response_deserializer=None)
        return [Arrival(time.perf_counter(), raw) async for raw in call(request.SerializeToString())]

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await read(channel, num_streams)  # warm
        begin_s = time.perf_counter()
        streams = await asyncio.gather(*(read(channel, stream) for stream in range(num_streams)))
        return time.perf_counter() - begin_s, streams


def one_run(kind: str, step_s: float, num_streams: int, num_tokens: int) -> Sample:
    context = multiprocessing.get_context("spawn")  # never fork after grpc
    ours, theirs = context.Pipe()
    process = context.Process(target=run_server, args=(kind, step_s, theirs))
    process.start()
    try:
        elapsed_s, streams = asyncio.run(read_streams(ours.recv(), num_streams, num_tokens))
        ours.send("end")
        processor_s, released = ours.recv()
    finally:
        process.join(30)
        process.terminate()
    delays = sorted(delay for stream, arrivals in enumerate(streams) for delay in delays_of(arrivals, released[stream]))
    total = num_streams * num_tokens
    return Sample(
        tokens_per_s=total / elapsed_s,
        messages_per_token=sum(map(len, streams)) / total,
        processor_s_per_token=processor_s / (total + num_tokens),  # the warm-up counts here
        delay_p50_s=delays[len(delays) // 2],
        delay_p99_s=delays[int(0.99 * (len(delays) - 1))],
    )


def delays_of(arrivals: Sequence[Arrival], released: Sequence[float]) -> list[float]:
    """One per token; a message brings as many as it has ids."""
    times = [a.at_s for a in arrivals for _ in pb.GenerateResponse.FromString(a.raw).chunk.token_ids]
    return [at_s - step_s for at_s, step_s in zip(times, released, strict=True)]


def show(label: str, samples: Sequence[Sample]) -> str:
    rates = sorted(sample.tokens_per_s for sample in samples)
    median = statistics.median_low(rates)
    middle = next(sample for sample in samples if sample.tokens_per_s == median)
    return (
        f"{label:<24} {median:>7,.0f} tok/s ({rates[0]:,.0f}..{rates[-1]:,.0f})"
        f"  {middle.messages_per_token:5.2f} msg/tok"
        f"  {1e6 * middle.processor_s_per_token:5.0f} us/tok"
        f"  delay p50 {1e3 * middle.delay_p50_s:7.2f} ms  p99 {1e3 * middle.delay_p99_s:7.2f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--step-s", type=float, default=0.02)
    args = parser.parse_args()
    for num_streams in args.streams:
        for step_s, pace in ((0.0, "flat out"), (args.step_s, f"{1e3 * args.step_s:g} ms steps")):
            tokens = args.tokens if step_s == 0.0 else max(50, args.tokens // 8)
            samples: dict[str, list[Sample]] = {FRONT: [], BARE: []}
            for _ in range(args.rounds):
                for kind, found in samples.items():  # in turn, so that drift hits both
                    found.append(one_run(kind, step_s, num_streams, tokens))
            for kind, found in samples.items():
                print(show(f"{kind}, {num_streams} x {pace}", found), flush=True)


if __name__ == "__main__":
    main()
