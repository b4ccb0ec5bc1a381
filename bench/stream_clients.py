"""Clients of bench/router_stream.py: they read as fast as they can and remember when what came."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pdserve.v1 import inference_pb2 as pb

GENERATE = "/pdserve.v1.InferenceService/Generate"
PROMPT_IDS = list(range(4, 36))


@dataclass(frozen=True, slots=True)
class Arrival:
    """Bytes, as they came."""

    at_s: float
    raw: bytes


Read = Callable[[str, int], Awaitable[list[Arrival]]]
"""One request (its id, how many tokens) from beginning to end."""


def grpc_reader(channel: Any, *, text: bool = False) -> Read:
    """Over one connection; `text`: the prompt is text."""
    call = channel.unary_stream(GENERATE, request_serializer=None, response_deserializer=None)

    async def read(request_id: str, num_tokens: int) -> list[Arrival]:
        request = pb.GenerateRequest(request_id=request_id, max_tokens=num_tokens)
        if text:
            request.text = "the quick brown fox jumps over the lazy dog"
        else:
            request.token_ids.ids.extend(PROMPT_IDS)
        return [Arrival(time.perf_counter(), raw) async for raw in call(request.SerializeToString())]

    return read


def grpc_tokens(arrivals: list[Arrival]) -> list[float]:
    """When each token came."""
    return [a.at_s for a in arrivals for _ in pb.GenerateResponse.FromString(a.raw).chunk.token_ids]


def http_reader(port: int) -> Read:
    """A connection for each request, streamed completions."""

    async def read(request_id: str, num_tokens: int) -> list[Arrival]:
        asked = {"prompt": PROMPT_IDS, "max_tokens": num_tokens, "stream": True, "request_id": request_id}
        body = json.dumps(asked).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        head += "content-type: application/json\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + body)
        arrivals = []
        while not arrivals or b"[DONE]" not in arrivals[-1].raw[-32:]:
            raw = await reader.read(1 << 16)
            if not raw:
                raise ConnectionError(f"the answer ended early: {arrivals[-1:]}")
            arrivals.append(Arrival(time.perf_counter(), raw))
        writer.close()
        return arrivals

    return read


def http_tokens(arrivals: list[Arrival]) -> list[float]:
    """When each token came; every token of the benchmark is one character."""
    times: list[float] = []
    rest = b""
    for arrival in arrivals:
        *lines, rest = (rest + arrival.raw).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                times += [arrival.at_s] * len(json.loads(line[6:])["choices"][0]["text"])
    return times
