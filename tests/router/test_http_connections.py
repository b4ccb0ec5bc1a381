"""Connections that misbehave, and a server that lives in somebody else's loop."""

from __future__ import annotations

import asyncio
import signal

import pytest

from router.http_front import build_app, serve_http


def test_connections_that_send_nothing_or_half_a_head_are_closed(open_desk):
    async def run():
        desk = open_desk()
        front = await serve_http(build_app(desk), "127.0.0.1", 0, head_timeout_s=0.1)
        for sent in (b"", b"GET /health HTTP/1.1\r\nhost: x\r\nx-slow: "):
            reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
            writer.write(sent)
            assert await asyncio.wait_for(reader.read(), 2) == b""
            writer.close()
        # A second request on a connection has the same time, and one that is served takes as long as it takes.
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200" in await reader.readline()
        writer.write(b"GET /health HT")
        await asyncio.wait_for(reader.read(), 2)
        writer.close()
        await front.stop(1)
        desk.close()

    asyncio.run(run())


def test_a_long_answer_is_not_cut_by_the_head_timeout(core, open_desk):
    gate = asyncio.Event()
    core.script = lambda request: [[100], gate, [101]]

    async def run():
        desk = open_desk()
        front = await serve_http(build_app(desk), "127.0.0.1", 0, head_timeout_s=0.05)
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        body = b'{"prompt": "x", "return_token_ids": true}'
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        writer.write(head + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body)
        asyncio.get_running_loop().call_later(0.2, gate.set)
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        await front.stop(1)
        desk.close()
        return answer

    assert b'"token_ids":[100,101]' in asyncio.run(run())


def test_a_client_that_stops_reading_is_cancelled(core, open_desk):
    """Over ASGI, because a kernel's buffers take megabytes before a write waits."""
    core.script = lambda request: [*([100] for n in range(99)), asyncio.Event()]
    body = b'{"prompt": "x", "stream": true, "n": 2, "max_tokens": 200}'
    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}
    received = iter([{"type": "http.request", "body": body, "more_body": False}])
    sent = []

    async def receive():
        return next(received, None) or await asyncio.Event().wait()

    async def send(message):
        sent.append(message)
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # the client has stopped reading

    async def run():
        desk = open_desk(limits={"max_unread_s": 0.1})
        async with asyncio.timeout(10):
            await build_app(desk)(scope, receive, send)
            await desk.idle()
        desk.close()

    asyncio.run(run())
    assert len(core.streams) == 2 and all(stream.cancelled.is_set() for stream in core.streams)
    assert b"read nothing" in sent[-1]["body"]


def test_signals_stay_with_the_process(open_desk):
    async def run():
        desk = open_desk()
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        front = await serve_http(build_app(desk), "127.0.0.1", 0)
        during = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        await front.stop(1)
        desk.close()
        return before, during

    before, during = asyncio.run(run())
    assert before == during


def test_a_port_in_use_is_an_error_and_not_the_end(open_desk):
    async def run():
        desk = open_desk()
        front = await serve_http(build_app(desk), "127.0.0.1", 0)
        try:
            with pytest.raises(OSError):
                await serve_http(build_app(desk), "127.0.0.1", front.port)
        finally:
            await front.stop(1)
            desk.close()

    asyncio.run(run())


def test_stopping_lets_a_running_request_end(core, open_desk):
    gate = asyncio.Event()
    core.script = lambda request: [[100], gate]

    async def run():
        desk = open_desk()
        front = await serve_http(build_app(desk), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        body = b'{"prompt": "x"}'
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        await core.on_submit.wait()
        desk.drain()
        stopping = asyncio.create_task(front.stop(5))
        gate.set()
        answer = await asyncio.wait_for(reader.read(), 5)
        await stopping
        writer.close()
        desk.close()
        return answer

    assert b"200 OK" in asyncio.run(run())


def test_the_end_of_an_answer_waits_for_its_reader_no_longer_than_the_rest(core, open_desk):
    """What the request held is free by then; only the connection is left to give up."""
    body = b'{"prompt": "x", "stream": true}'
    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}
    received = iter([{"type": "http.request", "body": body, "more_body": False}])
    last = []

    async def receive():
        return next(received, None) or await asyncio.Event().wait()

    async def send(message):
        if message["type"] == "http.response.body" and not message["more_body"]:
            last.append(message["body"])
            await asyncio.Event().wait()

    async def run():
        desk = open_desk(limits={"max_unread_s": 0.1})
        async with asyncio.timeout(10):
            await build_app(desk)(scope, receive, send)
            await desk.idle()
        desk.close()

    asyncio.run(run())
    assert last and last[0].endswith(b"data: [DONE]\n\n") and not core.streams[0].cancelled.is_set()
