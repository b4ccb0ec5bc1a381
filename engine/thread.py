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

MAX_IDLE_WAIT_S = 600.0  # without a deadline there is nothing to wake up for
LOAD_PERIOD_S = 0.25  # busy, the load is counted this often: it costs a look at every sequence
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
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()  # bounded by `put`, its only writer
        self._idle = True
        self._next_load_s = 0.0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, command: Command) -> None:
        """Hand in a command; QueueFull when the engine is that far behind."""
        if self._commands.qsize() >= MAX_COMMANDS:
            raise QueueFull(f"engine has {MAX_COMMANDS:,} commands waiting")
        self._commands.put(command)

    def stop(self, timeout_s: float = 10.0) -> bool:
        """End after the current step; True when the thread has ended. Safe to repeat."""
        if self._thread.is_alive():
            self._commands.put(None)
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
            self._core.close()
        except BaseException as error:
            log.exception("engine thread died")
            self._post(self._on_death, error)

    def _turn(self) -> bool:
        """Commands, one step, one report. False when told to stop.

        Where the last step found nothing to do, only a command or a deadline can change that: wait, never spin.
        """
        report = Report()
        if self._idle:
            try:
                command = self._commands.get(timeout=self._core.idle_s(MAX_IDLE_WAIT_S))
            except queue.Empty:
                pass  # a deadline
            else:
                if command is None:
                    return False
                self._core.apply(command, report)
        while not self._commands.empty():
            command = self._commands.get_nowait()
            if command is None:
                return False
            self._core.apply(command, report)
        self._idle = not self._core.step(report)
        now_s = self._core.clock.now()
        if self._idle or now_s >= self._next_load_s:
            self._next_load_s = now_s + LOAD_PERIOD_S
            report.load = self._core.load()
        self._post(self._on_report, report)
        return True

    def _post(self, function: Callable[[Any], None], value: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, value)
        except RuntimeError:
            pass  # the loop is closed: the process ends
