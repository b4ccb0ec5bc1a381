"""One worker as a child process, from its start line to its last.

launcher                                child
  spawn (own process group, dies with us)
  stdin: WorkerStart, one line of JSON ──>  loads, warms up
  <── stdout: Ready, one line of JSON       serves
  stdin stays open: its end means that the launcher is gone
  SIGTERM ──>                               drains, exits 0
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deploy.local.environment import child_environment
from pdserve.config import WorkerStart
from pdserve.exit import ExitCode, StartError

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 1 << 16  # a longer line of a child is forwarded in parts
_LINGER_S = 1.0  # for the pipes to end after the process did


@dataclass(frozen=True, slots=True)
class Ready:
    """What a worker says when it is warm."""

    worker_id: str
    address: str  # host:port of its service
    boot_id: str  # 32 hexadecimal digits
    pid: int


def worker_command(start: WorkerStart) -> list[str]:
    """The program of a worker: the same with every launcher."""
    return [sys.executable, "-P", "-m", f"{start.role}_worker"]


class WorkerProcess:
    """A child and its pipes. `spawn`, then `ready`, then `wait` until it ends or `stop`; always `stop` in the end."""

    def __init__(self, start: WorkerStart, process: Process) -> None:
        self.start = start
        self._process = process
        self._forward = asyncio.create_task(self._forward_stderr(), name=f"stderr of {start.worker_id}")
        self._drain: asyncio.Task[None] | None = None

    @classmethod
    async def spawn(cls, start: WorkerStart, command: Sequence[str]) -> WorkerProcess:
        """Start the child and hand it its first line."""
        guarded = [sys.executable, "-P", "-m", "deploy.local.die_with_parent", str(os.getpid()), *command]
        process = await asyncio.create_subprocess_exec(
            *guarded,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=child_environment(),
            process_group=0,
            limit=MAX_LINE_BYTES,
        )
        self = cls(start, process)
        assert process.stdin is not None
        process.stdin.write(start.to_json().encode() + b"\n")
        return self

    @property
    def worker_id(self) -> str:
        return self.start.worker_id

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ready(self) -> Ready:
        """Wait until it is warm; raises StartError with the child's own words and code when it cannot serve."""
        stdout = self._process.stdout
        assert stdout is not None
        try:
            line = await stdout.readline()
        except ValueError:  # longer than MAX_LINE_BYTES
            line = b"?"
        if not line:
            raise await self._died()
        ready = self._parse(line)
        self._drain = asyncio.create_task(_discard(stdout), name=f"stdout of {self.worker_id}")
        return ready

    def _parse(self, line: bytes) -> Ready:
        try:
            said: Any = json.loads(line)
            if said["ready"] is not True:
                code = ExitCode(said["exit_code"])
                raise StartError(f"{self.worker_id}: {one_line(said['error'])}", code or ExitCode.FAILED)
            ready = Ready(str(said["worker_id"]), str(said["address"]), str(said["boot_id"]), int(said["pid"]))
        except (ValueError, KeyError, TypeError):
            raise StartError(f"{self.worker_id} wrote {line[:200]!r} where its ready line belongs") from None
        if ready.worker_id != self.worker_id:
            raise StartError(f"{self.worker_id} calls itself {ready.worker_id!r}")
        return ready

    async def _died(self) -> StartError:
        """The error for a child that ended, or closed its output, without a word."""
        try:
            code = await asyncio.wait_for(self._process.wait(), _LINGER_S)
        except TimeoutError:
            return StartError(f"{self.worker_id} closed its output before it was ready")
        exit_code = ExitCode(code) if code in set(ExitCode) - {0} else ExitCode.FAILED
        return StartError(f"{self.worker_id} ended before it was ready: {describe_exit(code)}", exit_code)

    async def wait(self) -> int:
        """The exit status (negative: the signal), once it ended."""
        return await self._process.wait()

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL to its whole process group after `grace_s`. Safe to repeat; returns when it is gone."""
        if self._process.returncode is None:
            self._signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), grace_s)
            except TimeoutError:
                log.warning("%s did not stop within %g s: killed", self.worker_id, grace_s)
        self._signal_group(signal.SIGKILL)  # also what it may have started itself
        await self._process.wait()
        await self._end_pipes()

    async def _end_pipes(self) -> None:
        tasks = [task for task in (self._forward, self._drain) if task is not None]
        await asyncio.wait(tasks, timeout=_LINGER_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _signal(self, number: signal.Signals) -> None:
        try:
            self._process.send_signal(number)
        except ProcessLookupError:
            pass  # it ended meanwhile

    def _signal_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # nobody is left in it

    async def _forward_stderr(self) -> None:
        """Its log lines, on ours, each with its name."""
        stderr = self._process.stderr
        assert stderr is not None
        prefix = f"[{self.worker_id}] "
        while line := await _read_line(stderr):
            shown = line.decode("utf-8", "replace").rstrip("\r\n").rsplit("\r", 1)[-1]  # of a progress bar its end
            sys.stderr.write(prefix + shown + "\n")
            sys.stderr.flush()


async def _read_line(stream: asyncio.StreamReader) -> bytes:
    """A line or, when it is too long, as much as fits."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError as error:
        return await stream.read(error.consumed)


async def _discard(stream: asyncio.StreamReader) -> None:
    """Read on, so that a child which prints is never stuck."""
    while await stream.read(MAX_LINE_BYTES):
        pass


def describe_exit(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def one_line(text: object) -> str:
    return " ".join(str(text).split())
