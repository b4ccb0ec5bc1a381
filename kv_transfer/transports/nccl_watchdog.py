"""Bounds every wait for NCCL: what takes too long, or waits for a peer that is gone, is aborted.

    pipeline thread ── wait(mark) ──>  "nccl-wait" thread: waits for the device, which has no deadline of its own
       until passed, fired, or timed out
    control link ends, deadline ── fire() ──>  "nccl-abort" thread: abort(), which may hang as well

A thread stuck in CUDA or NCCL is left behind with what it may still write: those are buffers of ours, never the pool.
"""

from __future__ import annotations

import logging
import queue
import threading

from kv_transfer.transports.background import start_thread
from kv_transfer.transports.gpu_copies import Mark
from kv_transfer.transports.nccl_communicator import Communicator
from pdserve.errors import PeerLost

log = logging.getLogger(__name__)

ABORT_GRACE_S = 5.0
"""How long an abort may take until its communicator is given up for lost."""
LEFT_BEHIND: list[object] = []
"""Marks that an abort did not release, and with them the memory that NCCL may still write: never freed."""


class _Wait:
    """One mark that is waited for."""

    def __init__(self, mark: Mark) -> None:
        self.mark = mark
        self.is_over = False
        self.error: Exception | None = None


class Watchdog:
    """One communicator's."""

    def __init__(self, communicator: Communicator, timeout_s: float, grace_s: float = ABORT_GRACE_S) -> None:
        self._communicator = communicator
        self._timeout_s = timeout_s
        self._grace_s = grace_s
        self._changed = threading.Condition()
        self._reason: str | None = None
        self._aborting: threading.Thread | None = None
        self._waits: queue.SimpleQueue[_Wait | None] = queue.SimpleQueue()
        self._thread = start_thread("nccl-wait", self._run)

    def wait(self, mark: Mark) -> None:
        """Return when the mark is passed, with the communicator sound. By one thread at a time.

        Raises PeerLost after the timeout, after fire(), or when the device says so; the communicator is aborted then.
        """
        wait = _Wait(mark)
        self._waits.put(wait)
        with self._changed:
            self._changed.wait_for(lambda: wait.is_over or self._reason is not None, self._timeout_s)
        if wait.error is not None:
            self.fire(f"NCCL: {wait.error}")
        elif not wait.is_over:
            self.fire(f"NCCL stood still for {self._timeout_s:g} s")
        with self._changed:
            if self._reason is None:
                return
            if not self._changed.wait_for(lambda: wait.is_over, self._grace_s):
                log.error("an aborted NCCL communicator still runs after %g s: its memory is given up", self._grace_s)
                LEFT_BEHIND.append(mark)
            raise PeerLost(self._reason)

    def fire(self, reason: str) -> None:
        """Abort the communicator; the first reason counts. Any thread; does not block."""
        with self._changed:
            if self._reason is not None:
                return
            self._reason = reason
            self._aborting = start_thread("nccl-abort", self._communicator.abort)
            self._changed.notify_all()

    def close(self) -> None:
        """End the communicator and the threads, as far as NCCL lets them end. Safe to repeat."""
        self.fire("the pair was closed")
        assert self._aborting is not None
        self._aborting.join(self._grace_s)
        self._waits.put(None)
        self._thread.join(self._grace_s)

    def _run(self) -> None:
        while (wait := self._waits.get()) is not None:
            try:
                wait.mark.wait()
            except Exception as error:  # whoever waits re-raises it as PeerLost
                wait.error = error
            with self._changed:
                wait.is_over = True
                self._changed.notify_all()
            del wait  # holds a buffer while the queue is empty
