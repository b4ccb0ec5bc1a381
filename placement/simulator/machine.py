"""Steps on cores, or a card, that several workers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from placement.simulator.events import EventQueue


@dataclass(slots=True, eq=False)
class Job:
    """One step under way."""

    left_s: float  # were it alone
    began_s: float
    done: Callable[[float], None]


class Machine:
    """While n workers compute, each takes `slowdown[n - 1]` times as long as alone; the last number stands for more.

    Speeds change only when a step begins or ends: between those instants everything is linear, so nothing is stepped.
    """

    def __init__(self, slowdown: tuple[float, ...], events: EventQueue) -> None:
        self._slowdown = slowdown
        self._events = events
        self._jobs: list[Job] = []
        self._known_s = 0.0
        self._round = 0  # a planned end is void when this has moved on

    def begin(self, seconds: float, done: Callable[[float], None]) -> Job:
        """A step that takes `seconds` alone; `done` hears how long it took."""
        self._advance()
        job = Job(seconds, self._events.now(), done)
        self._jobs.append(job)
        self._plan()
        return job

    def drop(self, job: Job) -> None:
        """Its worker is gone; nothing when it has ended."""
        if job in self._jobs:
            self._advance()
            self._jobs.remove(job)
            self._plan()

    def _factor(self) -> float:
        return self._slowdown[min(len(self._jobs), len(self._slowdown)) - 1]

    def _advance(self) -> None:
        """Do the work of the time that has passed."""
        passed_s = self._events.now() - self._known_s
        self._known_s = self._events.now()
        if self._jobs:
            done_s = passed_s / self._factor()
            for job in self._jobs:
                job.left_s -= done_s

    def _plan(self) -> None:
        """The instant of the next end."""
        self._round += 1
        if self._jobs:
            next_s = max(0.0, min(job.left_s for job in self._jobs)) * self._factor()
            self._events.after(next_s, self._end, self._round)

    def _end(self, planned: int) -> None:
        if planned != self._round:
            return
        self._advance()
        # What is left of them is less than the clock can resolve; who has as little has ended as well.
        least = max(0.0, min(job.left_s for job in self._jobs))
        ended = [job for job in self._jobs if job.left_s <= least]
        self._jobs = [job for job in self._jobs if job.left_s > least]
        self._plan()
        for job in ended:
            job.done(self._events.now() - job.began_s)
