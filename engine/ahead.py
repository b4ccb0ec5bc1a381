"""The engine core for runners that compute elsewhere: the host works while the device does (docs/adr/0030).

    host      schedule n+1, launch n+1 ─ collect n ─┬─ complete, report n; apply; schedule, launch n+2 ─ collect n+1 ─┬─
    device    ────────────── step n ────────────────┴─────────────────────── step n+1 ────────────────────────────────┴─

Between two calls of `step` at most one step is in flight, and the host knows the tokens of all before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from engine.core import EngineCore, Report
from pdserve.clock import Clock
from scheduling.batching import Batch, Scheduler
from scheduling.step import AheadRunner, StepResult


@dataclass(frozen=True, slots=True)
class _Launched:
    batch: Batch
    ticket: Any  # the runner's
    launched_s: float


class AheadCore(EngineCore):
    """Launches each step before it collects the one before. Not thread-safe: one thread owns it."""

    def __init__(self, scheduler: Scheduler, runner: AheadRunner[Any], clock: Clock) -> None:
        super().__init__(scheduler, runner, clock)
        self._ahead = runner
        self._in_flight: _Launched | None = None
        self._collected_s = -math.inf  # when the device had done all before the step in flight

    def step(self, report: Report) -> bool:
        """As EngineCore, but a step is launched, and the report is of the one launched in the call before.

        After a call that returns False nothing is in flight.
        """
        expired = self.scheduler.expire()
        report.updates += expired
        before, self._in_flight = self._in_flight, None
        batch = self.scheduler.schedule() if before is None else self.scheduler.schedule_ahead()
        self._tell_room(batch, report)
        launched_s, caught = self.clock.now(), None
        if batch.steps:
            try:
                self._in_flight = _Launched(batch, self._ahead.launch(batch.steps), launched_s)
            except Exception as error:
                caught = error
        if before is not None:
            self._finish(before, report)
        if caught is not None:  # only now: what its sequences were computed from is complete
            report.updates += self.scheduler.complete(batch, self._lose(batch, caught))
        return bool(expired or batch.reserved or batch.steps or before)

    def close(self) -> None:
        """Wait for the step in flight: it writes memory that is about to go."""
        before, self._in_flight = self._in_flight, None
        if before is not None:
            self._finish(before, Report())

    def _finish(self, launched: _Launched, report: Report) -> None:
        results = self._collect(launched)
        now_s = self.clock.now()
        self._tell_stats(launched.batch, now_s - max(launched.launched_s, self._collected_s), report)
        self._collected_s = now_s
        report.updates += self.scheduler.complete(launched.batch, results)

    def _collect(self, launched: _Launched) -> list[StepResult]:
        try:
            results = self._ahead.collect(launched.ticket)
        except Exception as caught:
            return self._lose(launched.batch, caught)
        self._lost_steps = 0
        return results
