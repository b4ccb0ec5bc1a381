"""The served benchmark's client and proxy, against servers that say exactly what a test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bench.load.closed_loop import Streamed, closed_loop
from bench.load.http_request import completion_request
from bench.load.http_stream import Chunks, HttpPool
from bench.served.nixl_proxy import Proxy, length_of, read_head

Answerer = Callable[[dict[str, Any], asyncio.StreamWriter], Awaitable[None]]
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def events_of(token_ids: Sequence[int], usage: bool = True) -> bytes:
    said: list[dict[str, Any]] = [{"choices": [{"index": 0, "text": "x", "token_ids": [one]}]} for one in token_ids]
    if usage:
        said.append({"choices": [], "usage": {"completion_tokens": len(token_ids)}})
    return b"".join(f"data: {json.dumps(one)}\n\n".encode() for one in said) + b"data: [DONE]\n\n"


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in [*parts, b""])


@asynccontextmanager
async def serving(answer: Answerer) -> AsyncIterator[int]:
    """The port of a server that reads requests one after the other and answers them with `answer`."""

    open_ones: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_ones.add(task)
        try:
            while head := await read_head(reader):
                await answer(json.loads(await reader.readexactly(length_of(head))), writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)
        await asyncio.sleep(0)


async def drive(port: int, requests: Sequence[bytes], concurrency: int) -> list[Streamed | str]:
    return await closed_loop(HttpPool("127.0.0.1", port), requests, concurrency, 30.0)


def ask(answer: Answerer, num_requests: int = 1) -> list[Streamed | str]:
    async def run() -> list[Streamed | str]:
        async with serving(answer) as port:
            return await closed_loop(
                HttpPool("127.0.0.1", port), [completion_request("m", [5, 6], 3, True)] * num_requests, 2, 30.0
            )

    return asyncio.run(run())


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_chunks_come_apart_anywhere(size: int) -> None:
    """However the body is cut into chunks and the chunks into reads, the body comes out."""
    body = events_of([7, 8, 9])
    raw, chunks = chunked(body, size), Chunks()
    found = b"".join(chunks.feed(raw[at : at + 3]) for at in range(0, len(raw), 3))
    assert found == body
    assert chunks.ended


def test_a_stream_is_timed_and_its_tokens_kept() -> None:
    """Token ids in order, the count from usage, times in order, several requests on a connection."""

    async def answer(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        assert (body["prompt"], body["max_tokens"], body["ignore_eos"]) == ([5, 6], 3, True)
        raw = STREAM_HEAD + chunked(events_of([7, 8, 9]), 50)
        for at in range(0, len(raw), 40):
            writer.write(raw[at : at + 40])
            await asyncio.sleep(0.001)

    for one in ask(answer, num_requests=5):
        assert isinstance(one, Streamed)
        assert (one.answer.token_ids, one.answer.num_tokens) == ((7, 8, 9), 3)
        assert one.sent_s < one.answer.first_s < one.answer.last_s
        assert one.ttft_s > 0
        assert one.answer.tpot_s == sum(one.answer.gaps_s) / 2 == (one.answer.last_s - one.answer.first_s) / 2


async def refuses(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nbusy")


async def hangs_up(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD + chunked(events_of([7]), 500)[:60])
    await writer.drain()
    writer.close()


async def fails_in_the_middle(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD + chunked(b'data: {"error": {"message": "no memory"}}\n\n', 500))


async def forgets_usage(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD + chunked(events_of([7], usage=False), 500))


async def talks_nonsense(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD + b"zzz\r\n")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (refuses, "429 too many requests busy"),
        (hangs_up, "connection ended"),
        (fails_in_the_middle, "no memory"),
        (forgets_usage, "without usage"),
        (talks_nonsense, "ValueError"),
    ],
)
def test_what_goes_wrong_is_counted(answer: Answerer, said: str) -> None:
    """Every request has an answer or an error; one failure does not take the next request with it."""
    answers = ask(answer, num_requests=3)
    assert len(answers) == 3
    assert all(isinstance(one, str) and said in one for one in answers)


def test_a_server_that_is_gone_is_an_error() -> None:
    """No listener: every request counts as failed."""

    async def run() -> list[Streamed | str]:
        async with serving(refuses) as port:
            pass
        return await drive(port, [b"x"] * 2, 1)

    answers = asyncio.run(run())
    assert all(isinstance(one, str) and "Error" in one for one in answers)


def test_the_proxy_asks_prefill_for_one_token_and_passes_decode_on() -> None:
    """Prefill gets max_tokens 1 and no stream; decode gets the request with prefill's transfer parameters."""
    seen: list[dict[str, Any]] = []

    async def prefill(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        seen.append(body)
        payload = json.dumps({"choices": [], "kv_transfer_params": {"remote_port": 7}}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(payload), payload))

    async def decode(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        seen.append(body)
        writer.write(STREAM_HEAD + chunked(events_of([7, 8, 9]), 33))

    async def run() -> list[Streamed | str]:
        async with serving(prefill) as prefill_port, serving(decode) as decode_port:
            proxy = Proxy(prefill_port, decode_port)
            server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
            async with server:
                port = server.sockets[0].getsockname()[1]
                return await closed_loop(
                    HttpPool("127.0.0.1", port), [completion_request("m", [5, 6], 3, True)] * 2, 1, 30.0
                )

    answers = asyncio.run(run())
    assert [one.answer.token_ids for one in answers if isinstance(one, Streamed)] == [(7, 8, 9)] * 2
    asked, passed = seen[0], seen[1]
    assert (asked["max_tokens"], asked["stream"], asked["kv_transfer_params"]["do_remote_decode"]) == (1, False, True)
    assert (passed["max_tokens"], passed["stream"], passed["kv_transfer_params"]) == (3, True, {"remote_port": 7})


def test_the_proxy_says_when_prefill_refuses() -> None:
    """A refusal before the KV exists is an error for the client, not silence."""

    async def run() -> list[Streamed | str]:
        async with serving(refuses) as port:
            proxy = Proxy(port, port)
            server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
            async with server:
                at = server.sockets[0].getsockname()[1]
                return await drive(at, [completion_request("m", [5, 6], 3)], 1)

    (answer,) = asyncio.run(run())
    assert isinstance(answer, str)
    assert "502" in answer
