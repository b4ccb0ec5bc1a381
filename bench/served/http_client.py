"""A light streaming client of the OpenAI HTTP API, the same for every server: raw HTTP/1.1 and one JSON parse an event.

It shares the cores with the server that it measures, so it does nothing but remember when events came. What it cannot
read is an error of the request, never a request left out.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

EVENT_END = b"\n\n"
EVENT_START = b"data: "
DONE = b"[DONE]"


class BadAnswer(Exception):
    """The server said something else than a stream of completions."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """One request that was answered to its end."""

    sent_s: float  # perf_counter, as are the other times
    first_s: float  # the first event with a choice
    last_s: float  # the last one
    num_tokens: int  # by the server's usage
    cached_tokens: int  # prompt tokens that the server's prefix cache had
    token_ids: tuple[int, ...]  # empty unless the request asked for them

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.sent_s

    @property
    def tpot_s(self) -> float:
        return (self.last_s - self.first_s) / (self.num_tokens - 1)


class Chunks:
    """The body of one answer, out of its chunked encoding."""

    def __init__(self) -> None:
        self._raw = bytearray()
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """What more of the body is known now."""
        self._raw += data
        body = bytearray()
        while not self.ended:
            line_end = self._raw.find(b"\r\n")
            if line_end < 0:
                break
            size = int(self._raw[:line_end].split(b";")[0], 16)
            end = line_end + 2 + size
            if len(self._raw) < end + 2:
                break
            body += self._raw[line_end + 2 : end]
            del self._raw[: end + 2]
            self.ended = size == 0
        return bytes(body)


class StreamReading(asyncio.Protocol):
    """One connection; `ask` sends a request and waits for the end of its stream. One request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[None] | None = None
        self._begin()

    def _begin(self) -> None:
        self._head = bytearray()
        self._chunks: Chunks | None = None  # None while the head is read
        self._events = b""
        self._first_s = self._last_s = 0.0
        self._usage: dict[str, Any] = {}
        self._token_ids: list[int] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(BadAnswer(f"the connection ended{f': {exc}' if exc else ''}"))

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        try:
            self._read(data, now_s)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            self._fail(BadAnswer(f"{type(error).__name__}: {error}"))
        except BadAnswer as error:
            self._fail(error)

    def _read(self, data: bytes, now_s: float) -> None:
        if self._chunks is None:
            self._head += data
            head, found, data = bytes(self._head).partition(b"\r\n\r\n")
            if not found:
                return
            if b" 200 " not in head.split(b"\r\n")[0] or b"transfer-encoding: chunked" not in head.lower():
                raise BadAnswer(bytes(self._head)[:300].decode("utf-8", "replace"))
            self._chunks = Chunks()
        self._events += self._chunks.feed(data)
        for event in self._whole_events():
            self._on_event(event, now_s)
        if self._chunks.ended and self._answer is not None and not self._answer.done():
            self._answer.set_result(None)

    def _whole_events(self) -> Iterator[bytes]:
        *whole, self._events = self._events.split(EVENT_END)
        for event in whole:
            if event.startswith(EVENT_START) and not event.endswith(DONE):
                yield event[len(EVENT_START) :]

    def _on_event(self, event: bytes, now_s: float) -> None:
        said = json.loads(event)
        if "error" in said:
            raise BadAnswer(str(said["error"])[:300])
        if said["choices"]:
            self._first_s = self._first_s or now_s
            self._last_s = now_s
            self._token_ids += said["choices"][0].get("token_ids") or ()
        self._usage = said.get("usage") or self._usage

    def _fail(self, error: BadAnswer) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    async def ask(self, request: bytes) -> Streamed:
        """Send a whole HTTP request; BadAnswer for anything but a complete stream with tokens and usage."""
        assert self._transport is not None
        self._begin()
        self._answer = asyncio.get_running_loop().create_future()
        if self._transport.is_closing():
            raise BadAnswer("the connection is closed")
        sent_s = time.perf_counter()
        self._transport.write(request)
        await self._answer
        if not self._usage or not self._first_s:
            raise BadAnswer("the stream ended without tokens or without usage")
        cached = (self._usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        tokens = self._usage["completion_tokens"]
        return Streamed(sent_s, self._first_s, self._last_s, tokens, cached, tuple(self._token_ids))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    @classmethod
    async def connect(cls, port: int) -> Self:
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(cls, "127.0.0.1", port)
        return protocol


def completion_request(model: str, prompt: list[int], num_tokens: int, want_token_ids: bool = False) -> bytes:
    """The bytes of one greedy request of exactly num_tokens tokens, streamed."""
    body = {
        "model": model, "prompt": prompt, "max_tokens": num_tokens, "temperature": 0, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True}, "return_token_ids": want_token_ids,
    }  # fmt: skip
    payload = json.dumps(body, separators=(",", ":")).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload
