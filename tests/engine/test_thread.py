"""The engine's thread: it sleeps when there is nothing to do, and says how things stand before it does."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from collections.abc import Sequence as Seq

import pytest

import engine.thread
from engine.core import Command, EngineCore, Release, Report, Submit
from engine.thread import EngineThread
from pdserve.clock import MonotonicClock
from pdserve.errors import DeadlineExceeded, QueueFull
from pdserve.ids import SequenceKey
from pdserve.sampling import FinishReason, SampledToken, SamplingParams
from scheduling.batching import Scheduler, SchedulerConfig
from scheduling.blocks import BlockPool
from scheduling.sequence import Sequence, SequenceMode
from scheduling.step import SequenceStep, StepResult


class CountingCore(EngineCore):
    """Counts its steps, those that found nothing to do included."""

    num_steps = 0

    def step(self, report: Report) -> bool:
        self.num_steps += 1
        return super().step(report)


class SameTokenRunner:
    """Everyone gets token 7."""

    def execute(self, steps: Seq[SequenceStep]) -> list[StepResult]:
        return [None if step.sample is None else SampledToken(7) for step in steps]


class Driven:
    """A running thread and what it reported."""

    def __init__(self) -> None:
        config = SchedulerConfig(max_model_len=64, max_num_seqs=4, max_num_batched_tokens=32)
        scheduler = Scheduler(config, BlockPool(16, 4), MonotonicClock())
        self.core = CountingCore(scheduler, SameTokenRunner(), MonotonicClock())
        self.reports: list[Report] = []
        self._news = asyncio.Event()
        self.thread = EngineThread(self.core, asyncio.get_running_loop(), self._take, lambda error: None)

    def _take(self, report: Report) -> None:
        self.reports.append(report)
        self._news.set()

    async def until_at_rest(self) -> Report:
        """The last report of a run of steps: the one of a step that found nothing to do."""
        async with asyncio.timeout(10.0):
            while not self.reports or self.reports[-1].stats is not None or self.reports[-1].load is None:
                self._news.clear()
                await self._news.wait()
        return self.reports[-1]


def sequence(name: str, deadline_s: float = math.inf, mode: SequenceMode = SequenceMode.FULL) -> Sequence:
    return Sequence(SequenceKey(name), mode, [1, 2, 3], SamplingParams(max_tokens=5), deadline_s=deadline_s)


def drive(walk: Callable[[Driven], Awaitable[None]]) -> None:
    async def main() -> None:
        driven = Driven()
        driven.thread.start()
        await walk(driven)
        assert await asyncio.to_thread(driven.thread.stop)

    asyncio.run(main())


def test_nothing_to_do_is_no_turn_at_all() -> None:
    """After its last step the thread takes one more look, tells the load, and does not wake again."""

    async def walk(driven: Driven) -> None:
        driven.thread.put(Submit(sequence("a")))
        last = await driven.until_at_rest()
        assert last.load is not None and (last.load.running, last.load.blocks.used) == (0, 0)
        tokens = [update for report in driven.reports for update in report.updates]
        assert [update.output_index for update in tokens] == [0, 1, 2, 3, 4]
        assert tokens[-1].finish_reason is FinishReason.LENGTH
        before = driven.core.num_steps
        await asyncio.sleep(0.5)  # longer than it once slept
        assert driven.core.num_steps == before
        driven.thread.put(Release(SequenceKey("unknown")))
        driven.reports.clear()
        await driven.until_at_rest()
        assert driven.core.num_steps == before + 1

    drive(walk)


def test_a_deadline_wakes_it() -> None:
    """A sequence that waits for its KV ends in time, with nobody asking."""

    async def walk(driven: Driven) -> None:
        late_s = driven.core.clock.now() + 0.3
        driven.thread.put(Submit(sequence("late", late_s, SequenceMode.DECODE)))
        async with asyncio.timeout(10.0):
            while not any(report.updates for report in driven.reports):
                driven._news.clear()
                await driven._news.wait()
        assert driven.core.clock.now() >= late_s
        (update,) = (update for report in driven.reports for update in report.updates)
        assert isinstance(update.error, DeadlineExceeded)
        assert driven.core.num_steps <= 4

    drive(walk)


def test_commands_beyond_the_bound_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that does not take them fills its queue."""
    monkeypatch.setattr(engine.thread, "MAX_COMMANDS", 2)

    async def main() -> None:
        thread = Driven().thread  # not started
        command: Command = Release(SequenceKey("a"))
        thread.put(command), thread.put(command)
        with pytest.raises(QueueFull, match="2 commands"):
            thread.put(command)

    asyncio.run(main())
