"""The dashboard's addresses: the page, its state, a stream of it, and what a planner asks.

The page holds no data and needs no key; the data needs the key that every other request needs. It has names, numbers
and times of requests: never a prompt, never an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Send

from pdserve.clock import Clock
from pdserve.ids import new_boot_id
from pdserve.planning_format import PATH as PLANNING_PATH
from router.dashboard.broadcast import Broadcast, every
from router.dashboard.live import LiveView
from router.dashboard.page import Page, build_page
from router.dashboard.source import ClusterSource

PAGE_PATH = "/dashboard"
LOOK_S = 1.0
MAX_UNREAD_S = 30.0  # a watcher that takes nothing for this long has gone
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_NO_STORE = {**_HEADERS, "cache-control": "no-store"}


class Dashboard:
    """A live view behind HTTP: `start`, serve its `routes`, `close` before the server stops."""

    def __init__(self, view: LiveView, source: ClusterSource, clock: Clock) -> None:
        self._view = view
        self._source = source
        self._page: Page = build_page()
        self._boot = new_boot_id().hex()[:12]
        self._broadcast = Broadcast(lambda: view.snapshot(source), clock)
        self._clock = clock
        self._planning_s, self._planning_text = -math.inf, ""
        self._looking: asyncio.Task[None] | None = None
        self.routes = [
            Route(PAGE_PATH, self._show),
            Route(f"{PAGE_PATH}/state", self._state),
            Route(f"{PAGE_PATH}/events", self._events),
            Route(PLANNING_PATH, self._planning),
        ]

    @property
    def watchers(self) -> int:
        """How many streams are open."""
        return self._broadcast.watchers

    def start(self) -> None:
        """Begin to look at the workers."""
        assert self._looking is None, "started twice"
        self._look()
        self._looking = asyncio.create_task(every(LOOK_S, self._look), name="dashboard looks")

    async def close(self) -> None:
        """End every stream. Safe to repeat."""
        self._broadcast.close()
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking
            self._looking = None

    def _look(self) -> None:
        self._view.look(self._source)

    async def _show(self, request: Request) -> Response:
        headers = {
            **_HEADERS,
            "content-security-policy": self._page.policy,
            "cache-control": "no-cache",
            "etag": self._page.etag,
        }
        if request.headers.get("if-none-match") == self._page.etag:
            return Response(status_code=304, headers=headers)
        return Response(self._page.html, media_type="text/html; charset=utf-8", headers=headers)

    async def _state(self, request: Request) -> Response:
        if _is_tenants(request):
            return _refused()
        frame = self._broadcast.current()
        headers = {**_HEADERS, "cache-control": "no-cache", "etag": f'"{self._boot}-{frame.version}"'}
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(frame.whole, media_type="application/json", headers=headers)

    async def _events(self, request: Request) -> Response:
        if _is_tenants(request):
            return _refused()
        if self._broadcast.is_full:
            problem = {"error": {"message": "too many watch the dashboard; poll /dashboard/state", "code": "too_many"}}
            return JSONResponse(problem, 503, headers={**_NO_STORE, "retry-after": "5"})
        return _Events(self._stream())

    async def _planning(self, request: Request) -> Response:
        if _is_tenants(request):
            return _refused()
        if self._clock.now() - self._planning_s >= LOOK_S:  # milliseconds of the loop: not for every question
            facts = self._view.planning(self._source)
            self._planning_text = json.dumps(facts, separators=(",", ":"), allow_nan=False)
            self._planning_s = self._clock.now()
        return Response(self._planning_text, media_type="application/json", headers=_NO_STORE)

    async def _stream(self) -> AsyncGenerator[str]:
        async with contextlib.aclosing(self._broadcast.watch()) as news:
            async for kind, text in news:
                yield f"event: {kind}\ndata: {text}\n\n"


class _Events(StreamingResponse):
    """A stream that ends when its client reads nothing: it would keep another one's place."""

    def __init__(self, events: AsyncGenerator[str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=_NO_STORE)
        self._events = events

    async def stream_response(self, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(MAX_UNREAD_S):
                await send(message)

        async with contextlib.aclosing(self._events):
            with contextlib.suppress(TimeoutError):
                await super().stream_response(send_in_time)


def _is_tenants(request: Request) -> bool:
    """Whether the key speaks for one tenant only: it must not see the others' requests."""
    return bool(getattr(request.state, "key_tenant", ""))


def _refused() -> Response:
    problem = {"error": {"message": "this key speaks for one tenant; the dashboard shows all", "code": "forbidden"}}
    return JSONResponse(problem, 403, headers=_NO_STORE)
