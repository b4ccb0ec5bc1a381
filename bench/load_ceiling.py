"""How much load one generator process can make and read, beside what the router can serve in the same run.

    python -m bench.load_ceiling [--rounds 3] [--requests 300] [--tokens 200]

The generator of `pdserve bench` drives a server that has its answers ready (raw asyncio for HTTP, grpc.aio for gRPC; a
process of its own), once with one token a request and once with --tokens. Its processor time tells what a request and
what a token cost it, and their inverse what one core of it can do at most; the best of the rounds counts. Beside it
stands the processor time that our router spends on a token and on a request (bench.router_stream).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import grpc
import grpc.aio
import numpy as np

from bench.arguments import positive
from bench.load.open_loop import LoopPlan
from bench.load.processes import run_loop
from bench.load.result import Outcome, Result
from bench.load.target import Door, Target, parse_target
from bench.router_stream import Load, best, one_run, process
from pdserve.v1 import inference_pb2 as pb
from placement.workload import Workload

PROMPT_TOKENS = 256
SHARE = 0.4  # of a core that the generator is given to do: what it cannot do in time would only wait
ROUTER_STREAMS = 16


class Ready(asyncio.Protocol):
    """Answers each request with as many events as it asks for, each a message."""

    event = b'data: {"choices":[{"index":0,"text":" a","logprobs":null,"finish_reason":null}]}\n\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._raw = transport, b""

    def data_received(self, data: bytes) -> None:
        self._raw += data
        head, found, body = self._raw.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().split(b"content-length:")[1].split()[0]):
            return
        self._raw = b""
        asked = json.loads(body)
        asyncio.get_running_loop().create_task(self._answer(asked["max_tokens"]))

    async def _answer(self, tokens: int) -> None:
        self._transport.write(self.head)
        for _ in range(tokens):
            self._transport.write(b"%x\r\n%b\r\n" % (len(self.event), self.event))
            await asyncio.sleep(0)
        end = b'data: {"choices":[],"usage":{"completion_tokens":%d}}\n\n' % tokens
        self._transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(end), end))


def run_ready_http(pipe: Connection) -> None:
    """Tells its port, and serves until it is told anything."""
    asyncio.run(_serve_http(pipe))


async def _serve_http(pipe: Connection) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Ready, "127.0.0.1", 0)
    pipe.send(server.sockets[0].getsockname()[1])
    await loop.run_in_executor(None, pipe.recv)
    server.close()


def run_ready_grpc(pipe: Connection) -> None:
    """The same over gRPC."""
    asyncio.run(_serve_grpc(pipe))


async def _serve_grpc(pipe: Connection) -> None:
    chunk = pb.GenerateResponse(
        request_id="r" * 36, chunk=pb.GenerateChunk(token_ids=[7], text=" a")
    ).SerializeToString()

    async def generate(raw: bytes, context: Any) -> None:
        tokens = pb.GenerateRequest.FromString(raw).max_tokens
        for _ in range(tokens):
            await context.write(chunk)
        usage = pb.Usage(completion_tokens=tokens)
        await context.write(pb.GenerateResponse(complete=pb.GenerateComplete(usage=usage)).SerializeToString())

    server = grpc.aio.server()
    handlers = {"Generate": grpc.unary_stream_rpc_method_handler(generate)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("pdserve.v1.InferenceService", handlers),))
    pipe.send(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    await server.stop(0)


SERVERS = {Door.GRPC: run_ready_grpc, Door.COMPLETIONS: run_ready_http}


@dataclass(frozen=True, slots=True)
class Cost:
    """Processor seconds of the generator."""

    request_s: float
    token_s: float


def measure(door: Door, target: Target, num: int, tokens: int) -> Cost:
    """From two runs: with one token a request, and with many."""
    guess = Cost(2e-3, 2e-4 if door is Door.GRPC else 5e-5)
    short = _processor_s(target, num, 1, (guess.request_s + guess.token_s) / SHARE) / num
    long = _processor_s(target, num, tokens, (guess.request_s + tokens * guess.token_s) / SHARE) / num
    token_s = max(0.0, (long - short) / (tokens - 1))
    return Cost(max(0.0, short - token_s), token_s)


def _processor_s(target: Target, num: int, tokens: int, gap_s: float) -> float:
    workload = Workload.of(np.full(num, PROMPT_TOKENS), np.full(num, tokens), np.linspace(0.0, (num - 1) * gap_s, num))
    results: list[Result] = []
    plan = LoopPlan(target, workload, range(num), time.monotonic_ns(), None, 60.0, None)
    ran = run_loop(plan, 1, results.append, lambda now_s: False)
    wrong = [one for one in results if one.outcome is not Outcome.OK]
    if wrong or len(results) != num:
        raise SystemExit(f"load_ceiling: {len(wrong)} of {num} requests failed: {wrong[:1]}")
    return ran.cores[0] * ran.elapsed_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--requests", type=positive, default=300)
    parser.add_argument("--tokens", type=positive, default=200)
    args = parser.parse_args()
    for door, serve in SERVERS.items():
        with process(serve) as server:
            url = f"127.0.0.1:{server.recv()}"
            target = replace(parse_target(f"http://{url}" if door is Door.COMPLETIONS else url), model="ready")
            costs = [measure(door, target, args.requests, args.tokens) for _ in range(args.rounds)]
        _show("generator", door, min(one.request_s for one in costs), min(one.token_s for one in costs))
        kind = "http" if door is Door.COMPLETIONS else "grpc"
        streams, short = Load(ROUTER_STREAMS, args.tokens, 1, 0.0), Load(ROUTER_STREAMS, 2, 10, 0.0)
        tokens, requests = (best([one_run(kind, load) for _ in range(args.rounds)]) for load in (streams, short))
        token_s = tokens.processor_s / (streams.total_requests * streams.tokens)
        _show("router", door, requests.processor_s / short.total_requests, token_s)


def _show(what: str, door: Door, request_s: float, token_s: float) -> None:
    """The router's request has two tokens in it, the generator's none."""
    print(
        f"{what:<10} {door.value:<11} {1e6 * request_s:6.0f} us/request, {1e6 * token_s:5.1f} us/token of one core: "
        f"at most {1 / request_s:7,.0f} requests/s, or {1 / max(token_s, 1e-9):9,.0f} tokens/s",
        flush=True,
    )


if __name__ == "__main__":
    main()
