"""One cluster: workers as children or through Ray, the router in this process.

start:  workers load ┐
        tokenizer    ┴─> router connects ─> doors open ─> ready
stop:   refuse new ─> drain ─> end the rest with an answer ─> stop the doors ─> stop the workers
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from deploy.local.cluster import LocalCluster, RunningWorker, first_error
from deploy.local.worker_process import worker_command
from deploy.ray_cluster.cluster import RayCluster
from deploy.ready_file import ReadyInfo, ReadyWorker
from deploy.resolve import ResolvedServe
from pdserve.exit import StartError

if TYPE_CHECKING:  # loading it takes seconds, which workers use to load too
    from deploy.front_doors import FrontDoors, ModelText

log = logging.getLogger(__name__)

WORKER_STOP_S = 8.0


class Workers(Protocol):
    """What starts the workers, knows of their end, and ends them."""

    async def start(self, timeout_s: float) -> list[RunningWorker]: ...

    async def watch(self) -> None: ...

    async def stop(self, grace_s: float) -> None: ...


class Serving:
    """A whole cluster: `start`, then `drain`, then always `close`."""

    def __init__(self, resolved: ResolvedServe, plan: Path | None = None) -> None:
        """`plan` is the file that --plan named, for the dashboard; what it says is in `resolved` already."""
        self.resolved = resolved
        self._plan = plan
        self._secret = secrets.token_urlsafe(32)
        self._cluster = _launcher(resolved, self._secret)
        self._watch: asyncio.Task[None] | None = None
        self._doors: FrontDoors | None = None

    async def start(self) -> ReadyInfo:
        """Everything up, warm and answering; raises StartError otherwise (call `close` all the same)."""
        config = self.resolved.config
        try:
            async with asyncio.TaskGroup() as tasks:
                workers = tasks.create_task(self._cluster.start(config.start_timeout_s))
                text = tasks.create_task(asyncio.to_thread(_load_text, self.resolved))
        except* StartError as group:
            raise first_error(group) from None
        running = workers.result()
        self._watch = asyncio.create_task(self._cluster.watch(), name="watch workers")
        from deploy.front_doors import FrontDoors
        from deploy.planned import planned_of

        addresses = [one.ready.address for one in running]
        self._doors = FrontDoors(config.router, text.result(), addresses, self._secret, planned_of(config, self._plan))
        await self._doors.open()
        return self._info(self._doors, running)

    def _info(self, doors: FrontDoors, running: list[RunningWorker]) -> ReadyInfo:
        workers = [ReadyWorker(one.start.worker_id, one.start.role, one.ready.pid, one.start.device) for one in running]
        return ReadyInfo(doors.grpc_address, doors.http_address, self.resolved.served_name, workers)

    def why_not_ready(self) -> str:
        """Why nobody could be served now; "": one could."""
        return "it has not started" if self._doors is None else self._doors.core.why_not_ready()

    async def drain(self) -> None:
        """Refuse new requests and let the running ones end, for as long as the configuration gives them."""
        if self._doors is None:
            return
        limit_s = self.resolved.config.router.drain_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await self._doors.drain()
        except TimeoutError:
            log.warning("requests still run after %g s of draining: they end UNAVAILABLE", limit_s)

    async def close(self, grace_s: float = WORKER_STOP_S) -> None:
        """End everything; no process, socket or file of ours is left. Safe to repeat, also after it was cancelled."""
        if self._doors is not None:
            await self._doors.close()
        await self._cluster.stop(grace_s)
        if self._watch is not None:
            await self._watch


def _launcher(resolved: ResolvedServe, secret: str) -> Workers:
    if resolved.config.ray is not None:
        return RayCluster(resolved, secret)
    return LocalCluster(resolved.starts(secret), worker_command)


def _load_text(resolved: ResolvedServe) -> ModelText:
    from deploy.front_doors import load_text

    return load_text(resolved)
