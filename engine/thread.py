"""The engine's thread: owns all engine state; commands in by one bounded queue, one report out per step."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from engine.core import Command, EngineCore, Report
from pdserve.errors import QueueFull

log = logging.getLogger(__name__)

IDLE_WAIT_S = 0.2
MAX_COMMANDS = 65536


class EngineThread:
    """Runs an EngineCore. `put` and `stop` are called on the event loop, where `on_report` is called as well."""

    def __init__(
        self,
        core: EngineCore,
        loop: asyncio.AbstractEventLoop,
        on_report: Callable[[Report], None],
        on_death: Callable[[BaseException], None],
    ) -> None:
        self._core = core
        self._loop = loop
        self._on_report = on_report
        self._on_death = on_death
        self._commands: queue.Queue[Command | None] = queue.Queue(MAX_COMMANDS)
        self._idle = True
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, command: Command) -> None:
        """Hand in a command; QueueFull when the engine is that far behind."""
        try:
            self._commands.put_nowait(command)
        except queue.Full:
            raise QueueFull(f"engine has {MAX_COMMANDS:,} commands waiting") from None

    def stop(self, timeout_s: float = 10.0) -> bool:
        """End after the current step; True when the thread has ended. Safe to repeat."""
        if self._thread.is_alive():
            self._commands.put(None, timeout=timeout_s)
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            log.exception("engine thread died")
            self._post(self._on_death, error)

    def _turn(self) -> bool:
        """Commands, one step, one report. False when told to stop.

        Where the last step found nothing to do, only a command or a deadline can change that: wait, never spin.
        """
        report = Report()
        command = self._next(wait=self._idle)
        changed = command is not _NOTHING
        while command is not _NOTHING:
            if command is None:
                return False
            assert not isinstance(command, _Nothing)
            self._core.apply(command, report)
            command = self._next(wait=False)
        self._idle = not self._core.step(report)
        if changed or not self._idle:
            report.load = self._core.load()
            self._post(self._on_report, report)
        return True

    def _next(self, *, wait: bool) -> Command | _Nothing | None:
        try:
            return self._commands.get(timeout=IDLE_WAIT_S) if wait else self._commands.get_nowait()
        except queue.Empty:
            return _NOTHING

    def _post(self, function: Callable[[Any], None], value: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, value)
        except RuntimeError:
            pass  # the loop is closed: the process ends


class _Nothing:
    """No command was waiting."""


_NOTHING = _Nothing()
