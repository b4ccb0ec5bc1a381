"""Answering one generation request: whole or as server-sent events, for as long as the client is there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pdserve.errors import ServingError
from router.choice import ChoiceEnd
from router.generation import FrontDesk, Generation
from router.http_front.dialect import Dialect, Whole, shown_verdict
from router.http_front.parsing import Asked
from router.http_front.problem import problem_from, to_json
from router.text import Tokenizer

logger = logging.getLogger(__name__)

EVENT_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy that collects events would undo the streaming
]
LAST_WORDS_S = 2.0
DONE = b"data: [DONE]\n\n"

DialectOf = Callable[[Asked, Generation, str, Tokenizer], Dialect]


class Answer:
    """An ASGI application that serves one parsed request.

    The status line waits for the first token or the first error, so that a refusal is an HTTP status and not an event.
    """

    def __init__(self, desk: FrontDesk, asked: Asked, dialect_of: DialectOf) -> None:
        self._desk = desk
        self._asked = asked
        self._dialect_of = dialect_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not await while_connected(receive, self._serve(scope, receive, send)):
            logger.info("499: the client left before its answer was complete")

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_event(body: bytes, more_body: bool = True) -> None:
            nonlocal started
            if not started:
                started = True
                await send({"type": "http.response.start", "status": 200, "headers": EVENT_STREAM_HEADERS})
            await send({"type": "http.response.body", "body": body, "more_body": more_body})

        try:
            async with self._desk.serve(self._asked.draft) as generation:
                dialect = self._dialect_of(self._asked, generation, self._desk.card.served_name, self._desk.tokenizer)
                await dialect.prepare(self._desk.prompts)
                if not self._asked.stream:
                    body = to_json(dialect.whole(await _collect(generation)))
                else:
                    body = await self._stream(generation, dialect, send_event)
        except ServingError as error:
            problem = problem_from(error)
            if self._asked.return_timing and error.verdict is not None:
                problem.beside = {"pdserve": {"slo": shown_verdict(error.verdict)}}
            if not started:
                await problem.response()(scope, receive, send)
                return
            # The status line is out: the error is an event, and the stream ends without [DONE]. A client that reads
            # nothing does not read this either; then the server closes its connection.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await send_event(_event(to_json(problem.body())), more_body=False)
            return
        # What the request held is free before its answer, or the end of it, is on its way.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._desk.config.limits.max_unread_s):
                if self._asked.stream:
                    await send_event(body + DONE, more_body=False)
                else:
                    await Response(body, media_type="application/json")(scope, receive, send)

    async def _stream(
        self, generation: Generation, dialect: Dialect, send_event: Callable[[bytes], Awaitable[None]]
    ) -> bytes:
        """Every event but the last ones, which are returned: they leave with the end, as one message."""
        ends: dict[int, ChoiceEnd] = {}
        while True:
            updates = await generation.take()
            events = b"".join([_event(dialect.event(update)) for update in updates])
            ends |= {update.index: update.end for update in updates if update.end is not None}
            if len(ends) == len(generation.requests):
                break
            await send_event(events)
        if self._asked.include_usage:
            events += _event(to_json(dialect.usage_chunk([ends[n] for n in sorted(ends)])))
        return events


async def _collect(generation: Generation) -> list[Whole]:
    """Every choice to its end."""
    choices = [Whole([]) for _ in generation.requests]
    while any(choice.end is None for choice in choices):
        for update in await generation.take():
            choices[update.index].logprobs.extend(update.logprobs)
            choices[update.index].end = update.end
    return choices


def _event(body: bytes) -> bytes:
    return b"data: " + body + b"\n\n"


async def while_connected(receive: Receive, work: Awaitable[None]) -> bool:
    """Do the work unless the client leaves first, which cancels it; False: it left."""
    working = asyncio.ensure_future(work)
    watching = asyncio.create_task(_left(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _left(receive: Receive) -> None:
    """Returns when the client is gone; its body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
