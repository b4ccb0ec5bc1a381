"""All workers of a cluster on this machine: started together, watched, stopped together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deploy.local.child_process import describe_exit
from deploy.local.worker_process import Ready, WorkerProcess, worker_command
from pdserve.config import WorkerStart
from pdserve.exit import StartError

log = logging.getLogger(__name__)

PROGRESS_PERIOD_S = 10.0


@dataclass(frozen=True, slots=True)
class RunningWorker:
    """One warm worker."""

    start: WorkerStart
    ready: Ready


class LocalCluster:
    """`start`, `watch` while it serves, `stop`: all on one event loop."""

    def __init__(
        self, starts: Sequence[WorkerStart], command: Callable[[WorkerStart], list[str]] = worker_command
    ) -> None:
        self._starts = starts
        self._command = command
        self._processes: list[WorkerProcess] = []
        self._stopping = False

    async def start(self, timeout_s: float) -> list[RunningWorker]:
        """Every worker, warm. The first that cannot serve raises StartError; the others are then stopped by `stop`."""
        for start in self._starts:
            self._processes.append(await WorkerProcess.spawn(start, self._command(start)))
        waiting = {process.worker_id for process in self._processes}
        log.info("starting %s", ", ".join(sorted(waiting)))
        try:
            async with asyncio.timeout(timeout_s):
                return await self._until_warm(waiting)
        except TimeoutError:
            late = ", ".join(sorted(waiting))
            raise StartError(f"{late} not ready within {timeout_s:g} s (--start-timeout-s)") from None

    async def _until_warm(self, waiting: set[str]) -> list[RunningWorker]:
        try:
            async with asyncio.TaskGroup() as tasks:
                progress = tasks.create_task(_report(waiting))
                warm = [tasks.create_task(_until_ready(process, waiting)) for process in self._processes]
                running = [await task for task in warm]
                progress.cancel()
        except* StartError as group:
            raise first_error(group) from None
        return running

    async def watch(self) -> None:
        """Report every worker that ends while the cluster serves; returns when none is left."""

        async def one(process: WorkerProcess) -> None:
            status = await process.wait()
            if not self._stopping:
                log.error("%s (pid %d) is gone: %s", process.worker_id, process.pid, describe_exit(status))

        await asyncio.gather(*(one(process) for process in self._processes))

    async def stop(self, grace_s: float) -> None:
        """End every worker; returns when none is left. Safe to repeat."""
        self._stopping = True
        await asyncio.gather(*(process.stop(grace_s) for process in self._processes))


async def _until_ready(process: WorkerProcess, waiting: set[str]) -> RunningWorker:
    ready = await process.ready()
    waiting.discard(process.worker_id)
    log.info("%s is ready: pid %d, %s", process.worker_id, ready.pid, ready.address)
    return RunningWorker(process.start, ready)


async def _report(waiting: set[str]) -> None:
    """Say now and then who is still loading."""
    elapsed_s = 0.0
    while True:
        await asyncio.sleep(PROGRESS_PERIOD_S)
        elapsed_s += PROGRESS_PERIOD_S
        log.info("waiting for %s (%g s)", ", ".join(sorted(waiting)), elapsed_s)


def first_error(group: BaseExceptionGroup[StartError]) -> StartError:
    """One of several errors that tasks ended with: the first."""
    found = group.exceptions[0]
    return found if isinstance(found, StartError) else first_error(found)
