"""One worker as a child process: its start line, and what it says when it is warm."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.local.child_process import ChildProcess
from deploy.local.environment import worker_environment
from pdserve.config import WorkerStart
from pdserve.exit import StartError


@dataclass(frozen=True, slots=True)
class Ready:
    """What a worker says when it is warm."""

    worker_id: str
    address: str  # host:port of its service
    boot_id: str  # 32 hexadecimal digits
    pid: int

    @classmethod
    def parse(cls, said: Mapping[str, Any]) -> Ready:
        """Raises KeyError, TypeError or ValueError for anything else."""
        return cls(str(said["worker_id"]), str(said["address"]), str(said["boot_id"]), int(said["pid"]))


def worker_command(start: WorkerStart) -> list[str]:
    """The program of a worker: the same with every launcher."""
    return [sys.executable, "-P", "-m", f"{start.role}_worker"]


class WorkerProcess:
    """A worker's process. `spawn`, then `ready`, then `wait` until it ends or `stop`; always `stop` in the end."""

    def __init__(self, start: WorkerStart, child: ChildProcess) -> None:
        self.start = start
        self._child = child

    @classmethod
    async def spawn(cls, start: WorkerStart, command: Sequence[str]) -> WorkerProcess:
        """Start the child and hand it its first line."""
        environment = worker_environment(start)
        child = await ChildProcess.spawn(start.worker_id, command, start.to_json(), environment=environment)
        return cls(start, child)

    @property
    def worker_id(self) -> str:
        return self.start.worker_id

    @property
    def pid(self) -> int:
        return self._child.pid

    async def ready(self) -> Ready:
        """Wait until it is warm; raises StartError with the worker's own words and code when it cannot serve."""
        said = await self._child.answer()
        try:
            ready = Ready.parse(said)
        except (ValueError, KeyError, TypeError):
            raise self._child.wrong_answer(json.dumps(dict(said)).encode()) from None
        if ready.worker_id != self.worker_id:
            raise StartError(f"{self.worker_id} calls itself {ready.worker_id!r}")
        return ready

    async def wait(self) -> int:
        """The exit status (negative: the signal), once it ended."""
        return await self._child.wait()

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL to its whole process group after `grace_s`. Safe to repeat; returns when it is gone."""
        await self._child.stop(grace_s)
