"""Jobs side by side on processes of this machine; an interrupt gives what is known by then."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

from placement.search.build import Serving
from placement.search.job import confirmed, do_job
from placement.search.search import Answer, Job, Outcome, Question, Search
from placement.workload.source import WorkloadSource
from placement.workload.spec import WorkloadSpec

Progress = Callable[[Search, int], None]
"""Told after every answer: the search, and how many jobs run."""

_source: WorkloadSource | None = None  # of a worker process: read once, not with every job


def run_search(
    search: Search, spec: WorkloadSpec, processes: int | None = None, progress: Progress | None = None
) -> Outcome:
    """Carry out a screened search on `processes` (all cores without it); Ctrl-C ends it early, with what is known."""
    processes = processes or os.cpu_count() or 1
    if processes == 1:
        return _alone(search, progress)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(spec,))
    jobs, running, complete = search.jobs(), set[Future[Answer]](), True
    try:
        while True:
            while len(running) < processes and (job := next(jobs, None)) is not None:
                running.add(pool.submit(_work, job, search.question, search.serving))
            if not running:
                break
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                search.take(future.result())
            if progress is not None:
                progress(search, len(running))
        _confirm(search)
    except KeyboardInterrupt:
        complete = False
    finally:
        for process in list((pool._processes or {}).values()) if not complete else []:
            process.terminate()
        pool.shutdown(wait=complete, cancel_futures=True)
    return search.outcome(complete=complete)


def _alone(search: Search, progress: Progress | None) -> Outcome:
    try:
        for job in search.jobs():
            search.take(do_job(job, search.question, search.serving, search.source))
            if progress is not None:
                progress(search, 0)
        _confirm(search)
    except KeyboardInterrupt:
        return search.outcome(complete=False)
    return search.outcome(complete=True)


def _confirm(search: Search) -> None:
    """The confidence interval of the answer."""
    if search.best is not None:
        search.better_known(confirmed(search.best, search.question, search.serving, search.source))


def _begin(spec: WorkloadSpec) -> None:
    """A worker process: the parent alone answers Ctrl-C."""
    global _source  # noqa: PLW0603
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _source = WorkloadSource(spec)


def _work(job: Job, question: Question, serving: Serving) -> Answer:
    assert _source is not None
    return do_job(job, question, serving, _source)
