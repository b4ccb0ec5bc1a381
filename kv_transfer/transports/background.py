"""Threads beside an event loop: what may block runs there, what comes of it is told to the loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from pdserve.errors import PeerLost, QueueFull

T = TypeVar("T")


def call_soon(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: object) -> None:
    """Run a function on the loop from any thread; a closed loop has nobody left to tell."""
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise


async def settled_in_spite_of_cancellation(future: asyncio.Future[T]) -> T:
    """Wait for a future that others may wait for too; a cancellation is held back until it is done."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return future.result()


class Flag:
    """Raised once, from any thread; awaited on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread_side = threading.Event()
        self._loop_side = asyncio.Event()

    @property
    def is_raised(self) -> bool:
        return self._thread_side.is_set()

    def raise_(self) -> None:
        self._thread_side.set()
        call_soon(self._loop, self._loop_side.set)

    async def wait(self) -> None:
        await self._loop_side.wait()


def start_thread(name: str, function: Callable[[], None]) -> threading.Thread:
    """A daemon thread: a hung native call never keeps the process alive."""
    thread = threading.Thread(target=function, name=name, daemon=True)
    thread.start()
    return thread


async def call_in_thread(name: str, function: Callable[[], T], dispose: Callable[[T], object] | None = None) -> T:
    """Run a blocking function on a thread of its own and return its result.

    Without `dispose` a cancellation waits until the function is done; with it the caller is cancelled at once and the
    result, should there be one, is given to `dispose` on that thread.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    lock = threading.Lock()
    abandoned = False

    def deliver(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def body() -> None:
        try:
            result = function()
        except BaseException as error:  # the awaiting task re-raises it
            with lock:
                if not abandoned:
                    call_soon(loop, deliver, None, error)
            return
        with lock:
            if not abandoned:
                call_soon(loop, deliver, result, None)
                return
        assert dispose is not None
        dispose(result)

    start_thread(name, body)
    if dispose is None:
        return await settled_in_spite_of_cancellation(future)
    try:
        await asyncio.wait((future,))
    except asyncio.CancelledError:
        with lock:
            abandoned = True
        # A result that was already on its way to the loop has nobody else either.
        future.add_done_callback(lambda done: _dispose_late(name, done, dispose))
        raise
    return future.result()


def _dispose_late(name: str, done: asyncio.Future[T], dispose: Callable[[T], object]) -> None:
    if not done.cancelled() and done.exception() is None:
        result = done.result()
        start_thread(name, lambda: (dispose(result), None)[1])


class Closing:
    """Runs a blocking close once, on a thread; everybody who asks waits for that one."""

    def __init__(self, name: str, close: Callable[[], None]) -> None:
        self._name = name
        self._close = close
        self._task: asyncio.Future[None] | None = None

    @property
    def has_begun(self) -> bool:
        return self._task is not None

    async def run(self) -> None:
        if self._task is None:
            self._task = asyncio.ensure_future(call_in_thread(self._name, self._close))
        await settled_in_spite_of_cancellation(self._task)


class JobQueue(Generic[T]):
    """Jobs for one thread, bounded."""

    def __init__(self, max_jobs: int) -> None:
        self._max_jobs = max_jobs
        self._jobs: deque[T] = deque()
        self._changed = threading.Condition()
        self._stopped = False

    def submit(self, job: T) -> None:
        """Add a job; PeerLost after stop(), QueueFull at the bound."""
        with self._changed:
            if self._stopped:
                raise PeerLost("the pair is closed")
            if len(self._jobs) >= self._max_jobs:
                raise QueueFull(f"{len(self._jobs):,} transfers wait on one pair, limit {self._max_jobs:,}")
            self._jobs.append(job)
            self._changed.notify()

    def stop(self) -> list[T]:
        """Refuse more and return the jobs that nobody took. Does not wait for what was taken."""
        with self._changed:
            self._stopped = True
            left = list(self._jobs)
            self._jobs.clear()
            self._changed.notify()
            return left

    def take(self, *, wait: bool) -> T | None:
        """The next job; None after stop(), or when there is none and it shall not wait."""
        with self._changed:
            while wait and not self._jobs and not self._stopped:
                self._changed.wait()
            return self._jobs.popleft() if self._jobs else None


class JobThread(Generic[T]):
    """One daemon thread that does jobs in order, out of a bounded queue."""

    def __init__(self, name: str, do: Callable[[T], None], max_jobs: int = 1024) -> None:
        self._do = do
        self._jobs: JobQueue[T] = JobQueue(max_jobs)
        self._thread = start_thread(name, self._run)

    def submit(self, job: T) -> None:
        """Add a job; PeerLost after stop(), QueueFull at the bound."""
        self._jobs.submit(job)

    def stop(self) -> list[T]:
        """Refuse more and return the jobs that were never begun. Does not wait for the one that runs."""
        return self._jobs.stop()

    def join(self) -> None:
        """Wait until the running job is done and the thread has ended."""
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.take(wait=True)) is not None:
            self._do(job)
            del job  # holds memory and receipts while the queue is empty
