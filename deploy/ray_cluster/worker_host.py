"""The actor beside one worker: starts it as its child, tells how it ended, stops it.

The worker is the program of every launcher, in a process of its own: Ray's threads, gRPC, signal handlers and memory
are not in it, its pid is that of the process that computes, and the kernel kills it when the actor is gone.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from deploy.local.child_process import describe_exit
from deploy.local.worker_process import WorkerProcess, worker_command
from pdserve.config import WorkerStart
from pdserve.exit import StartError


class WorkerHost:
    """`start` once, then `gone` and `stop`; all on the actor's own event loop."""

    def __init__(self) -> None:
        self._process: WorkerProcess | None = None

    async def start(self, start_json: str) -> str:
        """The worker's answer, one line of JSON as a worker writes it. An error crosses as data, so that its exit
        code arrives."""
        start = WorkerStart.from_json(start_json)
        self._process = await WorkerProcess.spawn(start, worker_command(start))
        try:
            ready = await self._process.ready()
        except StartError as error:
            return json.dumps({"ready": False, "error": error.message, "exit_code": int(error.exit_code)})
        return json.dumps({"ready": True, **asdict(ready)})

    async def gone(self) -> str:
        """Wait until the worker has ended; in words, how."""
        assert self._process is not None
        return describe_exit(await self._process.wait())

    async def stop(self, grace_s: float) -> None:
        """End the worker; returns when it is gone. Safe to repeat, also while it starts."""
        if self._process is not None:
            await self._process.stop(grace_s)
