"""Runs a loop in this process, or shares it among several that begin at the same instant."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait

from bench.load.open_loop import LoopPlan, OpenLoop
from bench.load.result import Result
from bench.load.target import Door
from pdserve.exit import StartError
from placement.workload import Workload

TICK_S = 0.2
LEAD_S = 0.3  # between the last process being ready and time 0
READY_LIMIT_S = 60.0
TOKENS_PER_S_EACH = {Door.GRPC: 8_000, Door.COMPLETIONS: 25_000, Door.CHAT: 25_000}
"""What one process reads without being the bottleneck: less than half of what bench.load_ceiling measured."""
REQUESTS_PER_S_EACH = 300

Tick = Callable[[float], bool]
"""Called some times a second with the seconds since time 0; True ends the run."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How the generator itself did."""

    elapsed_s: float
    interrupted: bool  # by Ctrl-C
    num_processes: int
    cores: tuple[float, ...]  # that each process used


def processes_needed(workload: Workload, door: Door) -> int:
    """So many that none has to read more than TOKENS_PER_S_EACH, at most one a core."""
    seconds = max(workload.duration_s, 1.0)
    share = float(workload.output_tokens.sum()) / seconds / TOKENS_PER_S_EACH[door]
    share = max(share, len(workload) / seconds / REQUESTS_PER_S_EACH)
    return max(1, min(os.cpu_count() or 1, -int(-share // 1)))


def run_loop(plan: LoopPlan, num_processes: int, emit: Callable[[Result], None], tick: Tick) -> Ran:
    """Every request of the plan's share, told to `emit` as it ends; Ctrl-C ends it with what there is."""
    if num_processes == 1:
        return _run_here(plan, emit, tick)
    return _run_shared(plan, num_processes, emit, tick)


def _run_here(plan: LoopPlan, emit: Callable[[Result], None], tick: Tick) -> Ran:
    loop = OpenLoop(plan, emit)
    while loop.prepare():
        pass
    begin_s = time.perf_counter() + 0.02
    interrupted = False
    try:
        asyncio.run(_with_ticks(loop, begin_s, lambda: tick(time.perf_counter() - begin_s)))
    except KeyboardInterrupt:
        interrupted = True
    elapsed_s = max(time.perf_counter() - begin_s, 1e-9)
    return Ran(elapsed_s, interrupted, 1, (loop.processor_s / elapsed_s,))


async def _with_ticks(loop: OpenLoop, begin_s: float, tick: Callable[[], bool]) -> None:
    async def ticking() -> None:
        while not tick():  # noqa: ASYNC110 - a clock, not a condition that somebody could tell of
            await asyncio.sleep(TICK_S)
        loop.stop()

    beside = asyncio.create_task(ticking())
    try:
        await loop.run(begin_s)
    finally:
        beside.cancel()


def _run_shared(plan: LoopPlan, num_processes: int, emit: Callable[[Result], None], tick: Tick) -> Ran:
    context = multiprocessing.get_context("spawn")  # never fork after grpc
    shares = [replace(plan, share=plan.share[number::num_processes],
                      max_open=None if plan.max_open is None else max(1, plan.max_open // num_processes))
              for number in range(num_processes)]  # fmt: skip
    pipes, children = [], []
    try:
        for share in shares:
            ours, theirs = context.Pipe()
            child = context.Process(target=_generate, args=(share, theirs), daemon=True)
            child.start()
            theirs.close()
            pipes.append(ours)
            children.append(child)
        for pipe in pipes:
            if not pipe.poll(READY_LIMIT_S) or pipe.recv() != "ready":
                raise StartError("a generator process did not start")
        begin_s = time.perf_counter() + LEAD_S
        for pipe in pipes:
            pipe.send(begin_s)
        return _collect(pipes, begin_s, emit, tick)
    except EOFError:
        raise StartError("a generator process died") from None
    finally:
        for child in children:
            child.join(5.0)
            child.terminate()


def _collect(pipes: list[Connection], begin_s: float, emit: Callable[[Result], None], tick: Tick) -> Ran:
    """Results until every process has told its processor time."""
    running, cores, interrupted, stopped = list(pipes), [], False, False
    end_s = begin_s
    while running:
        try:
            for pipe in wait(running, TICK_S):
                assert isinstance(pipe, Connection)
                told = pipe.recv()
                end_s = time.perf_counter()
                if isinstance(told, list):
                    for result in told:
                        emit(result)
                else:
                    cores.append(told)
                    running.remove(pipe)
            stop = tick(time.perf_counter() - begin_s)
        except KeyboardInterrupt:
            interrupted = stop = True
        if stop and not stopped:
            stopped = True
            for pipe in running:
                with suppress(OSError):
                    pipe.send("stop")
    elapsed_s = max(end_s - begin_s, 1e-9)
    return Ran(elapsed_s, interrupted, len(pipes), tuple(one / elapsed_s for one in cores))


def _generate(plan: LoopPlan, pipe: Connection) -> None:
    """A generator process: ready, the begin, lists of results, at last its processor seconds."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    found: list[Result] = []
    loop = OpenLoop(plan, found.append)
    while loop.prepare():
        pass
    pipe.send("ready")
    begin_s = pipe.recv()

    def flush() -> bool:
        if found:
            pipe.send(found[:])
            found.clear()
        return False

    async def run() -> None:
        events = asyncio.get_running_loop()
        threading.Thread(target=_await_stop, args=(pipe, loop, events), daemon=True).start()
        await _with_ticks(loop, begin_s, flush)

    asyncio.run(run())
    flush()
    pipe.send(loop.processor_s)


def _await_stop(pipe: Connection, loop: OpenLoop, events: asyncio.AbstractEventLoop) -> None:
    """The parent's only word, or its end."""
    with suppress(EOFError, OSError):
        pipe.recv()
    with suppress(RuntimeError):  # the loop has ended
        events.call_soon_threadsafe(loop.stop)
