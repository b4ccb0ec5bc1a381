"""A child process that says once how it is, from its first line to its last.

launcher                                child
  spawn (own process group, dies with us)
  stdin: one line of JSON ──────────────>  gets ready
  <── stdout: one line of JSON             serves
  stdin stays open: its end means that the launcher is gone
  SIGTERM ──>                              drains, exits 0
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from typing import Any, Self

from deploy.local.environment import child_environment
from pdserve.exit import ExitCode, StartError

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 1 << 16  # a longer line of a child is forwarded in parts
_LINGER_S = 1.0  # for the pipes to end after the process did


class ChildProcess:
    """A child and its pipes. `spawn`, then `answer`, then `wait` until it ends or `stop`; always `stop` in the end."""

    def __init__(self, name: str, process: Process) -> None:
        self.name = name
        self._process = process
        self._forward = asyncio.create_task(self._forward_stderr(), name=f"stderr of {name}")
        self._drain: asyncio.Task[None] | None = None

    @classmethod
    async def spawn(
        cls, name: str, command: Sequence[str], first_line: str, max_line_bytes: int = MAX_LINE_BYTES,
        environment: Mapping[str, str] | None = None,
    ) -> Self:  # fmt: skip
        """Start the child and hand it its first line; an answer longer than `max_line_bytes` is none.

        `environment`: the whole of it; child_environment() unless given.
        """
        guarded = [sys.executable, "-P", "-m", "deploy.local.die_with_parent", str(os.getpid()), *command]
        process = await asyncio.create_subprocess_exec(
            *guarded,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=child_environment() if environment is None else environment,
            process_group=0,
            limit=max_line_bytes,
        )
        self = cls(name, process)
        assert process.stdin is not None
        process.stdin.write(first_line.encode() + b"\n")
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    async def answer(self) -> Mapping[str, Any]:
        """Wait until it is ready; raises StartError with the child's own words and code when it cannot be."""
        stdout = self._process.stdout
        assert stdout is not None
        try:
            line = await stdout.readline()
        except ValueError:  # longer than the limit
            line = b"?"
        if not line:
            raise await self._died()
        said = self._parse(line)
        self._drain = asyncio.create_task(_discard(stdout), name=f"stdout of {self.name}")
        return said

    def _parse(self, line: bytes) -> Mapping[str, Any]:
        try:
            said: Any = json.loads(line)
            if said["ready"] is not True:
                code = ExitCode(said["exit_code"])
                raise StartError(f"{self.name}: {one_line(said['error'])}", code or ExitCode.FAILED)
        except (ValueError, KeyError, TypeError):
            raise self.wrong_answer(line) from None
        answer: Mapping[str, Any] = said
        return answer

    def wrong_answer(self, line: bytes) -> StartError:
        """The error for an answer that is none."""
        return StartError(f"{self.name} wrote {line[:200]!r} where its ready line belongs")

    async def _died(self) -> StartError:
        """The error for a child that ended, or closed its output, without a word."""
        try:
            code = await asyncio.wait_for(self._process.wait(), _LINGER_S)
        except TimeoutError:
            return StartError(f"{self.name} closed its output before it was ready")
        exit_code = ExitCode(code) if code in set(ExitCode) - {0} else ExitCode.FAILED
        return StartError(f"{self.name} ended before it was ready: {describe_exit(code)}", exit_code)

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
                log.warning("%s did not stop within %g s: killed", self.name, grace_s)
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
        prefix = f"[{self.name}] "
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
