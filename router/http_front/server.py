"""The listening HTTP server: uvicorn inside a loop that others own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEAD_BYTES = 256 << 10
"""What h11 may buffer of one request head; beyond it the answer is uvicorn's plain 400, up to it our 431."""
HEAD_TIMEOUT_S = 10.0
KEEP_ALIVE_S = 60.0
DATE_S = 1.0
"""How old the date in an answer's head may be."""


class PunctualProtocol(H11Protocol):  # type: ignore[misc]  # uvicorn's types are skipped
    """HTTP/1.1 in which a request's head has to arrive in time; uvicorn waits for it forever."""

    head_timeout_s: ClassVar[float] = HEAD_TIMEOUT_S
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._disarm()  # a whole head came
        elif self._head_timer is None and (before is None or before.response_complete):
            self._arm()  # part of one

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _arm(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_s, self.transport.close)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class EmbeddedServer(uvicorn.Server):  # type: ignore[misc]  # uvicorn's types are skipped
    """uvicorn that leaves signals to the process's owner and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Begin to end."""
        self.should_exit = True
        self._stopping.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def main_loop(self) -> None:
        """uvicorn's looks ten times a second whether to exit; its tick only writes the date, which needs one."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), DATE_S)


@dataclass(frozen=True, slots=True)
class HttpFront:
    """A running server."""

    port: int
    server: EmbeddedServer
    task: asyncio.Task[None]

    async def stop(self, grace_s: float) -> None:
        """No new connections; requests that run get grace_s to end."""
        self.server.config.timeout_graceful_shutdown = grace_s
        self.server.stop()
        await self.task


async def serve_http(app: ASGIApp, host: str, port: int, head_timeout_s: float = HEAD_TIMEOUT_S) -> HttpFront:
    """Listen (port 0 picks a free one) and answer. Raises OSError when the address cannot be had.

    A connection whose next request's head is not there within head_timeout_s of its beginning is closed.
    """
    listener = await _listen(host, port)
    options: dict[str, Any] = {
        "log_config": None,
        "access_log": False,
        "lifespan": "off",
        "ws": "none",
        "http": type("Protocol", (PunctualProtocol,), {"head_timeout_s": head_timeout_s}),
        "server_header": False,
        "proxy_headers": False,
        "h11_max_incomplete_event_size": MAX_HEAD_BYTES,
        "timeout_keep_alive": KEEP_ALIVE_S,
    }
    server = EmbeddedServer(uvicorn.Config(app, **options))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    waiting = asyncio.create_task(server.listening.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        await task
        raise OSError(f"the HTTP server on {host}:{port} ended at once")
    return HttpFront(listener.getsockname()[1], server, task)


async def _listen(host: str, port: int) -> socket.socket:
    """Bound here and not by uvicorn, which ends the process when it cannot."""
    (family, kind, protocol, _, address), *_ = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
