"""Tasks side by side on processes of this machine; an interrupt gives what is known by then."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Self

from placement.search.answer import Answer, Outcome
from placement.search.build import Serving
from placement.search.job import confirmed, do_job
from placement.search.question import Job, Question
from placement.search.search import Search
from placement.search.whatif import Consequence, WhatIf, as_asked, consequence, consistent
from placement.workload.source import WorkloadSource
from placement.workload.spec import WorkloadSpec

Progress = Callable[[Search, int], None]
"""Told after every answer: the search, and how many tasks run."""
Task = Callable[[WorkloadSource], Any]
"""Plain data, so that another process can do it; the workload is there already."""
Take = Callable[[Task, Any, int], None]
"""Given each task that is done, its result, and how many still run."""

_source: WorkloadSource | None = None  # of a worker process: read once, not with every task


class Processes:
    """Worker processes for all tasks of one question, started with the first; with one, everything is done here."""

    def __init__(self, spec: WorkloadSpec, source: WorkloadSource, num: int | None = None) -> None:
        self._spec, self._source = spec, source
        self._num = num or len(os.sched_getaffinity(0))
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def each(self, tasks: Iterator[Task | None], take: Take) -> None:
        """Do all of them; the next one is asked for when there is a process for it; None: not before another is done.

        Errors: those of a task, and KeyboardInterrupt; the processes are killed then, and others may follow.
        """
        try:
            if self._num == 1:
                for task in tasks:
                    assert task is not None, "nothing is under way that could be waited for"
                    take(task, task(self._source), 0)
            else:
                self._side_by_side(tasks, take)
        except BaseException:
            self._end()
            raise

    def _side_by_side(self, tasks: Iterator[Task | None], take: Take) -> None:
        running: dict[Future[Any], Task] = {}
        while True:
            while len(running) < self._num and (task := next(tasks, None)) is not None:
                running[self._submit(task)] = task
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                take(task, future.result(), len(running))

    def _end(self) -> None:
        """Nobody is waited for and nobody is left behind; nothing but their answers is lost."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, task: Task) -> Future[Any]:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._num, mp_context=context, initializer=_begin, initargs=(self._spec,))
        with _no_interrupt():
            return self._pool.submit(_work, task)


@dataclass(frozen=True, slots=True)
class Closer:
    """The answer, looked at again, and what follows from it."""

    outcome: Outcome
    what_if: tuple[Consequence, ...]
    complete: bool  # False: interrupted, and some of it is missing


def run_search(search: Search, processes: Processes, progress: Progress | None = None) -> Outcome:
    """Carry out a screened search; Ctrl-C ends it early, with what is known."""

    def take(task: Task, answer: Answer, running: int) -> None:
        search.take(answer)
        if progress is not None:
            progress(search, running)

    def task_of(job: Job | None) -> Task | None:
        return None if job is None else partial(do_job, job, search.question, search.serving)

    tasks = map(task_of, search.jobs())
    try:
        processes.each(tasks, take)
    except KeyboardInterrupt:
        return search.outcome(complete=False)
    return search.outcome(complete=True)


def look_closer(
    outcome: Outcome, question: Question, serving: Serving, changes: Sequence[WhatIf], processes: Processes
) -> Closer:
    """The confidence interval of the best, and what it serves after each change; Ctrl-C leaves out the rest."""
    best = outcome.best
    if best is None:
        return Closer(outcome, (), True)
    again: Task = partial(confirmed, best, question, serving)
    tasks: list[Task] = [again, *(partial(consequence, one, best.candidate, question, serving) for one in changes)]
    found: dict[int, Any] = {}

    def take(task: Task, result: Any, running: int) -> None:
        found[next(place for place, one in enumerate(tasks) if one is task)] = result

    try:
        processes.each(iter(tasks), take)
    except KeyboardInterrupt:
        pass
    known: Answer = found.get(0, best)
    told = tuple(found[place] for place in sorted(found) if place > 0)
    answers = tuple(known if one is best else one for one in outcome.answers)
    sure = known if outcome.sure is best else outcome.sure
    outcome = replace(outcome, best=known, sure=sure, answers=answers)
    told = consistent((as_asked(known), *told) if 0 in found else told)
    return Closer(outcome, told, len(found) == len(tasks))


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Ctrl-C and SIGTERM are held back, and a process that is started here never hears them: the parent answers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(spec: WorkloadSpec) -> None:
    """A worker process."""
    global _source  # noqa: PLW0603
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _source = WorkloadSource(spec)


def _end_with_parent() -> None:
    """The pool itself does not notice a parent that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(task: Task) -> Any:
    assert _source is not None
    return task(_source)
