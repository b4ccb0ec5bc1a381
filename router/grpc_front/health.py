"""`grpc.health.v1`: serving means that a request sent now could be served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
from grpc_health.v1 import health, health_pb2

REFRESH_S = 0.25
"""How late a Watch may be; a Check is never."""


class ReadinessHealth(health.aio.HealthServicer):  # type: ignore[misc]  # grpc has no types
    """Health of "" and of each named service, from one question asked when somebody wants to know."""

    def __init__(self, service_names: tuple[str, ...], is_ready: Callable[[], bool]) -> None:
        super().__init__()
        self._names = ("", *service_names)
        self._is_ready = is_ready
        self._num_watchers = 0
        self._watched = asyncio.Event()  # somebody watches

    async def Check(self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext) -> object:
        await self.refresh()
        return await super().Check(request, context)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext) -> None:
        self._num_watchers += 1
        self._watched.set()
        try:
            await self.refresh()
            await super().Watch(request, context)
        finally:
            self._num_watchers -= 1
            if not self._num_watchers:
                self._watched.clear()

    async def refresh(self) -> None:
        status = health_pb2.HealthCheckResponse
        now = status.SERVING if self._is_ready() else status.NOT_SERVING
        for name in self._names:
            if self._server_status.get(name) != now:
                await self.set(name, now)

    async def refresh_forever(self) -> None:
        """For those who watch: readiness is a question, so somebody has to ask it."""
        while True:
            await self._watched.wait()  # an idle router sleeps
            await self.refresh()
            await asyncio.sleep(REFRESH_S)
