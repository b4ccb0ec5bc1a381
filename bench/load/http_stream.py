"""A light streaming client of the OpenAI HTTP API, the same for every server: raw HTTP/1.1 and one JSON parse an event.

It may share the cores with the server that it measures, so it does nothing but remember when events came. What it
cannot read is an error of the request, never a request left out.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from array import array
from typing import Any, Self

from bench.load.result import Answer, BadAnswer, Outcome

DONE = b"[DONE]"
NO_ROOM = {429, 503}
OUT_OF_TIME = {408, 504}
CONNECT_LIMIT_S = 10.0
SHOWN_BYTES = 300


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
        self._status = 0  # 0 while the head is read
        self._chunks: Chunks | None = None
        self._left = 0  # bytes of a body with a stated length
        self._refusal = bytearray()
        self._line = b""
        self._first_s = self._last_s = 0.0
        self._gaps_s = array("d")
        self._usage: dict[str, Any] = {}
        self._token_ids: list[int] = []
        self._blame: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(self._refused() if self._refusal else BadAnswer(f"the connection ended{f': {exc}' if exc else ''}"))

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        try:
            self._read(data, now_s)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            self._fail(BadAnswer(f"{type(error).__name__}: {error}"))
        except BadAnswer as error:
            self._fail(error)

    def _read(self, data: bytes, now_s: float) -> None:
        if not self._status:
            self._head += data
            head, found, data = bytes(self._head).partition(b"\r\n\r\n")
            if not found:
                return
            self._read_head(head)
        body = data if self._chunks is None else self._chunks.feed(data)
        ended = self._chunks.ended if self._chunks is not None else len(data) >= self._left
        self._left -= len(data)
        if self._status != 200:
            self._refusal += body
            if ended:
                raise self._refused()
            return
        *lines, self._line = (self._line + body).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and DONE not in line[:20]:
                self._on_event(line[5:], now_s)
        if ended and self._answer is not None and not self._answer.done():
            self._answer.set_result(None)

    def _read_head(self, head: bytes) -> None:
        first, *fields = head.lower().split(b"\r\n")
        named = {name.strip(): value.strip() for name, _, value in (one.partition(b":") for one in fields)}
        self._status = int(first.split()[1])
        if b"chunked" in named.get(b"transfer-encoding", b""):
            self._chunks = Chunks()
        elif self._status == 200:
            raise BadAnswer(f"not a stream: {head[:SHOWN_BYTES].decode('utf-8', 'replace')}")
        else:
            self._left = int(named.get(b"content-length", b"0"))
        if self._status != 200:
            self._refusal += first + b" "

    def _refused(self) -> BadAnswer:
        if self._transport is not None:
            self._transport.abort()  # whatever else it meant to say
        outcome = Outcome.REJECTED if self._status in NO_ROOM else Outcome.FAILED
        outcome = Outcome.TIMEOUT if self._status in OUT_OF_TIME else outcome
        said = bytes(self._refusal)
        try:
            blame = _blame_in(json.loads(said[said.find(b"{") :]))
        except ValueError:
            blame = None  # cut off, or no JSON
        return BadAnswer(said[:SHOWN_BYTES].decode("utf-8", "replace"), outcome, blame)

    def _on_event(self, event: bytes, now_s: float) -> None:
        said = json.loads(event)
        if "error" in said:
            raise BadAnswer(str(said["error"])[:SHOWN_BYTES], blame=_blame_in(said))
        if said["choices"] and _has_tokens(said["choices"][0]):
            if self._first_s:
                self._gaps_s.append(now_s - self._last_s)
            self._first_s = self._first_s or now_s
            self._last_s = now_s
            self._token_ids += said["choices"][0].get("token_ids") or ()
        self._usage = said.get("usage") or self._usage
        if "pdserve" in said:  # in the last event
            self._blame = _blame_in(said)

    def _fail(self, error: BadAnswer) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    async def ask(self, request: bytes) -> Answer:
        """Send a whole HTTP request; BadAnswer for anything but a complete stream with tokens and usage."""
        assert self._transport is not None
        self._begin()
        self._answer = asyncio.get_running_loop().create_future()
        if self._transport.is_closing():
            raise BadAnswer("the connection is closed")
        self._transport.write(request)
        await self._answer
        if not self._usage or not self._first_s:
            raise BadAnswer("the stream ended without tokens or without usage")
        cached = (self._usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        tokens = int(self._usage["completion_tokens"])
        token_ids = tuple(self._token_ids)
        return Answer(self._first_s, self._last_s, tokens, self._gaps_s, cached, token_ids, self._blame)

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    @classmethod
    async def connect(cls, port: int, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Self:
        """Raises OSError."""
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(cls, host, port, ssl=tls)
        return protocol


def _blame_in(said: Any) -> str | None:
    """The server's verdict, of an answer or an error; None where a server gives none."""
    try:
        return str(said["pdserve"]["slo"]["blame"])
    except (KeyError, TypeError):
        return None


def _has_tokens(choice: dict[str, Any]) -> bool:
    """Every event of a completion tells of tokens, text or not; of a chat, those with some content."""
    delta = choice.get("delta")
    return delta is None or any(delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls"))


class HttpPool:
    """Connections that are free are used again; where none is, another is opened."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._host, self._port, self._tls = host, port, tls
        self._free: list[StreamReading] = []

    async def ask(self, request: bytes) -> Answer:
        """Raises BadAnswer; leaving early ends the connection, which tells the server."""
        connection = await self._take()
        try:
            answer = await connection.ask(request)
        except BaseException:
            connection.close()
            raise
        self._free.append(connection)
        return answer

    async def _take(self) -> StreamReading:
        while self._free:
            connection = self._free.pop()
            if connection.usable:
                return connection
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                return await StreamReading.connect(self._port, self._host, self._tls)
        except OSError as error:  # TimeoutError is one
            raise BadAnswer(f"{type(error).__name__}: {error}") from None

    async def close(self) -> None:
        for connection in self._free:
            connection.close()
        self._free.clear()
        await asyncio.sleep(0)  # transports end in a turn of the loop
