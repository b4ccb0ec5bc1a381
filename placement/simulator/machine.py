"""Steps on cores, or a card, that several workers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from placement.simulator.cluster import Slowdown
from placement.simulator.events import EventQueue


@dataclass(slots=True, eq=False)
class Job:
    """One step under way."""

    left_s: float  # were it alone
    prompts: bool  # it has prompt tokens
    began_s: float
    done: Callable[[float], None]


class Machine:
    """Every step under way goes as much slower as those beside it make it.

    Speeds change only when a step begins or ends: between those instants everything is linear, so nothing is stepped.
    """

    def __init__(self, slowdown: Slowdown, events: EventQueue) -> None:
        self._slowdown = slowdown
        self._events = events
        self._jobs: list[Job] = []
        self._factors = (1.0, 1.0)  # of steps of decodes and of steps with prompts, as long as these jobs run
        self._known_s = 0.0
        self._round = 0  # a planned end is void when this has moved on

    def begin(self, seconds: float, prompts: bool, done: Callable[[float], None], *, rested: bool = False) -> Job:
        """A step that takes `seconds` alone; `done` hears how long it took. `rested`: its worker did nothing before."""
        self._advance()
        if prompts and rested and self._jobs:
            seconds += self._slowdown.rested_prompts_s
        job = Job(seconds, prompts, self._events.now(), done)
        self._jobs.append(job)
        self._plan()
        return job

    def drop(self, job: Job) -> None:
        """Its worker is gone; nothing when it has ended."""
        if job in self._jobs:
            self._advance()
            self._jobs.remove(job)
            self._plan()

    def _advance(self) -> None:
        """Do the work of the time that has passed."""
        passed_s = self._events.now() - self._known_s
        self._known_s = self._events.now()
        for job in self._jobs:
            job.left_s -= passed_s / self._factors[job.prompts]

    def _plan(self) -> None:
        """The speeds from now on, and the instant of the next end."""
        self._round += 1
        if not self._jobs:
            return
        prompts = sum(job.prompts for job in self._jobs)
        decodes = len(self._jobs) - prompts
        self._factors = (
            self._slowdown.factor(False, prompts, max(0, decodes - 1)),
            self._slowdown.factor(True, max(0, prompts - 1), decodes),
        )
        self._events.after(max(0.0, min(map(self._remaining_s, self._jobs))), self._end, self._round)

    def _remaining_s(self, job: Job) -> float:
        return job.left_s * self._factors[job.prompts]

    def _end(self, planned: int) -> None:
        if planned != self._round:
            return
        self._advance()
        # What is left of them is less than the clock can resolve; who has as little has ended as well.
        least_s = max(0.0, min(map(self._remaining_s, self._jobs)))
        ended = [job for job in self._jobs if self._remaining_s(job) <= least_s]
        self._jobs = [job for job in self._jobs if job not in ended]
        self._plan()
        for job in ended:
            job.done(self._events.now() - job.began_s)
