"""Ctrl-C and SIGTERM: the first asks to stop, the second to stop at once. Handlers only set events."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def sigterm_is_ctrl_c() -> Iterator[None]:
    """For work that Ctrl-C ends with what is known, and that must leave no process behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopSignals:
    """Two events of one event loop; `install` in the main thread."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.forced = asyncio.Event()

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        (self.forced if self.asked.is_set() else self.asked).set()

    async def unless_asked(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do some work; None, with the work cancelled, when somebody asks to stop before it is done."""
        return await _unless(self.asked, work)

    async def unless_forced(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The same for a second signal."""
        return await _unless(self.forced, work)


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    task, waiting = asyncio.create_task(work), asyncio.create_task(event.wait())
    both: set[asyncio.Task[Any]] = {task, waiting}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for one in both:
            one.cancel()
        await asyncio.gather(*both, return_exceptions=True)
