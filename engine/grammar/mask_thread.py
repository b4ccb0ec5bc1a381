"""The masks of a step's constrained rows, computed on a thread of their own while the forward pass runs.

    begin(requests)  ─> thread: each matcher follows its sequence's new tokens and says what may come next
    take()           waits for what is missing

A native call cannot be interrupted. A row whose mask takes too long is given up, alone: its thread is left behind, and
another one does the rest.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from types import MappingProxyType

from engine.grammar.threads import start_thread
from pdserve.errors import BadSampling, CapacityError, InvariantViolation, ServingError
from scheduling.step import SampleRequest

log = logging.getLogger(__name__)

MAX_CPU_S = 0.3  # of one mask; usual ones take less than a millisecond
MAX_WALL_S = 10.0  # the same on a machine that has no time for it
LOOK_S = 0.02  # while waiting, how often it is looked at what the thread does
MAX_LEFT_BEHIND = 2  # threads; then constraints are refused until one of them is done

Mask = bytes | ServingError
"""One bit per token, lowest first, or why there is none."""
NO_MASKS: Mapping[int, Mask] = MappingProxyType({})


class _Work:
    """The masks of one step; `results` is written by the thread, row by row."""

    def __init__(self, rows: dict[int, SampleRequest]) -> None:
        self.rows = rows
        self.results: dict[int, Mask] = {}
        self.done = threading.Event()
        self._lock = threading.Lock()  # of what follows
        self._row = -1  # being computed; -1: none yet
        self._began_cpu_s = self._began_s = 0.0  # of that row: the thread's own clock, and everyone's
        self._given_up = False

    def begin(self, row: int) -> bool:
        """The thread takes a row; False: another one does the rest."""
        with self._lock:
            self._row, self._began_cpu_s, self._began_s = row, time.thread_time(), time.monotonic()
            return not self._given_up

    def give_up(self, thread: threading.Thread) -> int | None:
        """The row that takes too long, if one does: its thread takes no other row from now on."""
        assert thread.ident is not None
        with self._lock:
            if self._row < 0 or self._row in self.results:
                return None
            cpu_s = time.clock_gettime(time.pthread_getcpuclockid(thread.ident)) - self._began_cpu_s
            self._given_up = cpu_s > MAX_CPU_S or time.monotonic() - self._began_s > MAX_WALL_S
            return self._row if self._given_up else None


class MaskThread:
    """Used by one thread, which begins a step's masks and takes them before it begins the next step's."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._left_behind: list[threading.Thread] = []
        self._work: _Work | None = None

    def begin(self, requests: Seq[SampleRequest]) -> None:
        """One request per row; returns at once."""
        rows = {row: request for row, request in enumerate(requests) if request.matcher is not None}
        self._work = self._give(rows) if rows else None

    def take(self) -> Mapping[int, Mask]:
        """The mask of every row that is constrained."""
        work, results = self._work, dict[int, Mask]()
        self._work = None
        if work is None:
            return NO_MASKS
        while not work.done.wait(LOOK_S):
            assert self._thread is not None
            row = work.give_up(self._thread)
            if row is not None:
                results |= work.results
                results[row] = BadSampling("the constraint takes too long to follow")
                work = self._replace_thread(work, results)
        return results | work.results

    def _give(self, rows: dict[int, SampleRequest]) -> _Work:
        work = _Work(rows)
        self._left_behind = [thread for thread in self._left_behind if thread.is_alive()]
        if len(self._left_behind) >= MAX_LEFT_BEHIND:
            error = CapacityError("constraints take too long to follow at the moment", retry_after_s=5.0)
            work.results = dict.fromkeys(rows, error)
            work.done.set()
            return work
        if self._thread is None:
            self._thread = start_thread("masks", _compute_all, self._queue)
            weakref.finalize(self, self._queue.put, None)
        self._queue.put(work)
        return work

    def _replace_thread(self, work: _Work, results: Mapping[int, Mask]) -> _Work:
        """Leave the thread to its row; the rest of the rows go to another."""
        log.warning("a constraint took too long to follow")
        assert self._thread is not None
        self._queue.put(None)
        self._left_behind.append(self._thread)
        self._queue, self._thread = queue.SimpleQueue(), None
        rest = {row: request for row, request in work.rows.items() if row not in results}
        return self._give(rest)


def _compute_all(works: queue.SimpleQueue[_Work | None]) -> None:
    """The thread: until None comes."""
    while (work := works.get()) is not None:
        for row, request in work.rows.items():
            if not work.begin(row):
                break
            work.results[row] = _mask(request)
        work.done.set()


def _mask(request: SampleRequest) -> Mask:
    assert request.matcher is not None
    try:
        return request.matcher.allowed(request.token_ids, request.num_prompt_tokens)
    except ServingError as error:
        return error
    except BaseException as caught:  # a panic of Rust is no Exception; without its thread the engine would die
        log.exception("a constraint failed")
        return InvariantViolation(f"the constraint failed: {type(caught).__name__}")
