"""One process's open loop: every request at its time, whatever became of those before it.

Latency counts from the *intended* time. A server, a cap or a generator that holds requests back shows in their latency
(Tene's coordinated omission), and the generator's own part of it is told beside.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass

from bench.load.prompts import Prompts
from bench.load.result import Answer, BadAnswer, Outcome, Result
from bench.load.target import Target
from pdserve.slo import Slo
from placement.workload import Workload

AHEAD = 64  # requests that are ready to be sent before they are due
SPARE_S = 0.003  # there is time to prepare one more
TIMER_S = 0.0015  # asyncio's timers are late by up to that; the rest is slept by yielding


@dataclass(frozen=True, slots=True)
class LoopPlan:
    """All that a generator process needs. Times of the workload count from when the loop begins."""

    target: Target
    workload: Workload
    share: range  # indices of the workload that this process sends
    prompt_seed: int
    slo: Slo | None  # told to our own server with each request
    timeout_s: float  # of a request, from when it was to be sent
    max_open: int | None  # requests in flight; None: as many as come


Emit = Callable[[Result], None]


class OpenLoop:
    """`run` once; `stop` ends it early, with what is in flight interrupted."""

    def __init__(self, plan: LoopPlan, emit: Emit) -> None:
        self._plan, self._emit = plan, emit
        texts = plan.target.wants_text
        self._prompts = Prompts(plan.workload, plan.target.vocab_size, plan.prompt_seed, texts)
        self._ready: deque[tuple[int, bytes]] = deque()
        self._left = iter(plan.share)
        self._stopped = asyncio.Event()
        self._begin_s = 0.0
        self.processor_s = 0.0  # of this process, while it ran

    def prepare(self) -> bool:
        """Make one more request, if there is place and one left."""
        index = next(self._left, None) if len(self._ready) < AHEAD else None
        if index is None:
            return False
        workload = self._plan.workload
        tenant = workload.tenant.names[workload.tenant.codes[index]]
        tokens = int(workload.output_tokens[index])
        request = self._plan.target.request(self._prompts.of(index), tokens, self._slo(index), tenant)
        self._ready.append((index, request))
        return True

    def _slo(self, index: int) -> Slo | None:
        slo, classes = self._plan.slo, self._plan.workload.slo_class
        name = classes.names[classes.codes[index]]
        if slo is None:
            return None if name == "default" else Slo(name)
        return Slo(name, slo.ttft_s, slo.tpot_s)

    async def run(self, begin_s: float) -> None:
        """All requests; time 0 of the workload is begin_s of perf_counter."""
        self._begin_s = begin_s
        processor_s = time.process_time()
        pool = self._plan.target.pool()
        places = None if self._plan.max_open is None else asyncio.Semaphore(self._plan.max_open)
        running: set[asyncio.Task[None]] = set()
        try:
            while (self._ready or self.prepare()) and not self._stopped.is_set():
                index, request = self._ready.popleft()
                await self._wait_until(begin_s + float(self._plan.workload.arrival_s[index]))
                if self._stopped.is_set():
                    break
                task = asyncio.create_task(self._one(pool.ask, places, index, request))
                running.add(task)
                task.add_done_callback(running.discard)
            await self._finish(running)
        finally:
            self.processor_s = time.process_time() - processor_s
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await pool.close()

    async def _finish(self, running: set[asyncio.Task[None]]) -> None:
        """Until all have ended, or it is stopped. Every request has its own limit."""
        stopped = asyncio.create_task(self._stopped.wait())
        try:
            while running and not self._stopped.is_set():
                await asyncio.wait({*running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()

    def stop(self) -> None:
        self._stopped.set()

    async def _wait_until(self, due_s: float) -> None:
        while (left_s := due_s - time.perf_counter()) > 0 and not self._stopped.is_set():
            if left_s > SPARE_S and self.prepare():
                await asyncio.sleep(0)
            elif left_s > TIMER_S:
                try:
                    async with asyncio.timeout(left_s - TIMER_S):
                        await self._stopped.wait()
                except TimeoutError:
                    pass
            else:
                await asyncio.sleep(0)

    async def _one(
        self, ask: Callable[[bytes], Awaitable[Answer]], places: asyncio.Semaphore | None, index: int, request: bytes
    ) -> None:
        """One request from its turn to its end; tells its result in any case."""
        workload = self._plan.workload
        intended_s = float(workload.arrival_s[index])
        due_s = self._begin_s + intended_s
        turn_s = sent_s = time.perf_counter()
        answer: Answer | None = None
        outcome, error, blame = Outcome.INTERRUPTED, "", None
        try:
            async with asyncio.timeout(due_s + self._plan.timeout_s - turn_s):
                async with places or nullcontext():
                    sent_s = time.perf_counter()
                    answer = await ask(request)
            outcome = self._judged(answer, int(workload.output_tokens[index]))
            if outcome is Outcome.SHORT:
                error = f"{answer.num_tokens} tokens came"
        except BadAnswer as bad:
            outcome, error, blame = bad.outcome, str(bad), bad.blame
        except TimeoutError:
            outcome, error = Outcome.TIMEOUT, f"no end within {self._plan.timeout_s:g} s"
        finally:
            now_s = time.perf_counter()
            common = (index, intended_s, turn_s - due_s, sent_s - turn_s, outcome,
                      int(workload.prompt_tokens[index]), int(workload.output_tokens[index]))  # fmt: skip
            if answer is None:
                self._emit(Result(*common, now_s - self._begin_s, error=error, blame=blame))
            else:
                self._emit(Result(
                    *common, answer.last_s - self._begin_s, answer.first_s - self._begin_s, answer.num_tokens,
                    answer.tpot_s, answer.gaps_s, answer.cached_tokens, error, answer.blame,
                ))  # fmt: skip

    def _judged(self, answer: Answer, asked: int) -> Outcome:
        return Outcome.SHORT if self._plan.target.exact_lengths and answer.num_tokens < asked else Outcome.OK
