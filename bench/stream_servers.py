"""The servers that bench/router_stream.py compares, each a process: the router, and bare ones of the same stacks."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from bench.step_worker import LEAST_STEP_S, SECRET, token_of
from deploy.models.byte_bpe import write_tokenizer
from pdserve.clock import MonotonicClock
from pdserve.v1 import inference_pb2 as pb
from router.core.core import Core
from router.generation import FrontDesk
from router.grpc_front import serve_grpc
from router.http_front import build_app, serve_http
from router.interface import ModelCard
from router.limits import FrontConfig
from router.text import load_tokenizer

CONTEXT = 1 << 15


async def answer(pipe: Connection, settle: Callable[[], None] = lambda: None) -> None:
    """Tell the process time used between the parent's two words, and until what was put off is done."""
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, pipe.recv)
    begin_s = time.process_time()
    await loop.run_in_executor(None, pipe.recv)
    await loop.run_in_executor(None, settle)
    pipe.send(time.process_time() - begin_s)


def run_router(addresses: list[str], pipe: Connection) -> None:
    """Core, desk and both doors, as `pdserve serve` puts them together; tells the two ports."""
    asyncio.run(serve_router(lambda: Core(addresses, SECRET), pipe))


async def serve_router(
    make_core: Callable[[], Core], pipe: Connection, settle: Callable[[], None] = lambda: None
) -> None:
    """The same around another core; `settle` does what was put off, and counts."""
    with TemporaryDirectory() as name:
        write_tokenizer(Path(name), 512, CONTEXT, add_bos=True)
        (Path(name) / "config.json").write_text('{"model_type": "llama"}')
        tokenizer = load_tokenizer(name)
    core = make_core()
    await core.start()
    await asyncio.wait_for(core.wait_ready(), 30)
    desk = FrontDesk(core, ModelCard("bench", CONTEXT, 512, ()), tokenizer, FrontConfig(), MonotonicClock())
    doors = await serve_grpc(desk, "127.0.0.1:0"), await serve_http(build_app(desk), "127.0.0.1", 0)
    pipe.send([door.port for door in doors])
    await answer(pipe, settle)
    for door in doors:
        await door.stop(1)
    desk.close()
    await core.close()


class StepClock:
    """Wakes every stream once a step, and remembers when each step was."""

    def __init__(self) -> None:
        self._next: asyncio.Event = asyncio.Event()
        self._step_at_s = 0.0
        self.made_s: dict[str, list[float]] = {}

    async def wait(self, request_id: str) -> None:
        await self._next.wait()
        self.made_s.setdefault(request_id, []).append(self._step_at_s)

    async def run(self, step_s: float) -> None:
        while True:
            await asyncio.sleep(max(step_s, LEAST_STEP_S))
            self._step_at_s = time.perf_counter()
            self._next.set()
            self._next = asyncio.Event()


def run_bare_grpc(step_s: float, pipe: Connection) -> None:
    """grpc.aio that writes bytes it has ready, one message a token, and does nothing else."""
    asyncio.run(_serve_bare_grpc(step_s, pipe))


def run_bare_http(step_s: float, pipe: Connection) -> None:
    """Starlette on uvicorn, as both come, that writes events it has ready, one a token, and does nothing else."""
    asyncio.run(_serve_bare_http(step_s, pipe))


async def _serve_bare_http(step_s: float, pipe: Connection) -> None:
    clock = StepClock()
    choice = '{"index":0,"text":"a","logprobs":null,"finish_reason":null}'
    event = (
        f'data: {{"id":"cmpl-{"r" * 36}","object":"text_completion","created":1795264299,"model":"bench",'
        f'"choices":[{choice}]}}\n\n'
    ).encode()

    async def complete(request: Request) -> StreamingResponse:
        asked = await request.json()

        async def events() -> AsyncIterator[bytes]:
            for _ in range(asked["max_tokens"]):
                await clock.wait(asked["request_id"])
                yield event
            yield b"data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    listener = socket.create_server(("127.0.0.1", 0))
    app = Starlette(routes=[Route("/v1/completions", complete, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
    serving = asyncio.create_task(server.serve([listener]))
    stepping = asyncio.create_task(clock.run(step_s))
    pipe.send([listener.getsockname()[1]])
    await answer(pipe)
    pipe.send(clock.made_s)
    stepping.cancel()
    server.should_exit = True
    await serving


async def _serve_bare_grpc(step_s: float, pipe: Connection) -> None:
    clock = StepClock()
    payloads = [
        pb.GenerateResponse(
            request_id="r" * 36, chunk=pb.GenerateChunk(token_ids=[token_of(index)], text="a")
        ).SerializeToString()
        for index in range(94)
    ]

    async def generate(raw: bytes, context: Any) -> None:
        request = pb.GenerateRequest.FromString(raw)
        for index in range(request.max_tokens):
            await clock.wait(request.request_id)
            await context.write(payloads[index % 94])

    server = grpc.aio.server()
    handlers = {"Generate": grpc.unary_stream_rpc_method_handler(generate)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("pdserve.v1.InferenceService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stepping = asyncio.create_task(clock.run(step_s))
    pipe.send([port])
    await answer(pipe)
    pipe.send(clock.made_s)
    stepping.cancel()
    await server.stop(0)
