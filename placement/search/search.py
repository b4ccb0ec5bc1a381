"""The search: screen by bounds, simulate the promising ones best first, stop when nothing left can win.

Two questions. *Most*: the placement within the budget with the highest steady goodput. *Least*: the cheapest placement
(GPUs, dollars or watts) that carries a given rate. For both, candidates are simulated in the order of what they
promise, and one whose bound cannot beat the best found so far is never simulated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from placement.search.bounds import Bounds, LengthStats, Slo, bounds_of
from placement.search.build import DoesNotFit, Serving, cluster_of
from placement.search.candidate import Candidate
from placement.search.goodput import Effort, Goodput, Run, Verdict, find_goodput, look
from placement.simulator.cluster import ClusterSpec
from placement.simulator.fast.run import simulate_fast, unsupported
from placement.simulator.requests import requests_of
from placement.simulator.results import RequestColumns
from placement.simulator.simulate import simulate
from placement.workload.source import WorkloadSource
from placement.workload.workload import Workload


class Price(Enum):
    """What a placement costs."""

    GPUS = "gpus"
    COST = "cost"  # dollars per hour
    POWER = "power"  # watts

    def of(self, candidate: Candidate) -> float:
        if self is Price.GPUS:
            return candidate.gpus
        return candidate.cost_per_hour if self is Price.COST else candidate.power_w


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked."""

    slo: Slo
    rate: float | None = None  # requests per second to carry at the least price; None: as many as possible
    price: Price = Price.GPUS
    effort: Effort = field(default_factory=Effort)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """One candidate, looked at."""

    candidate: Candidate
    bounds: Bounds
    goodput: Goodput | None  # None: screened out
    reason: str  # what binds, or why it was not simulated

    @property
    def rate(self) -> float:
        return self.goodput.rate if self.goodput is not None else 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found."""

    best: Answer | None  # None: no candidate can
    answers: tuple[Answer, ...]  # every candidate that fits, best first
    unfit: tuple[str, ...]  # why others do not fit
    complete: bool  # False: interrupted


@dataclass(frozen=True, slots=True)
class Job:
    """One candidate to simulate; plain data, so that another process can do it."""

    candidate: Candidate
    bounds: Bounds
    floor: float  # of the rate: what cannot beat it is given up


class Simulated:
    """A cluster, to be run: compiled where that models what is asked, else the real code; their answers are equal."""

    def __init__(self, cluster: ClusterSpec) -> None:
        self._cluster = cluster

    def __call__(self, workload: Workload) -> RequestColumns:
        if not unsupported(self._cluster, workload):
            return simulate_fast(self._cluster, workload).requests
        return simulate(self._cluster, requests_of(workload)).requests


def run_of(candidate: Candidate, serving: Serving, source: WorkloadSource, seed: int) -> Run:
    """A candidate as a function of rate and number of requests; common random numbers over all candidates."""
    simulated = Simulated(cluster_of(candidate, serving))

    def run(rate: float, num_requests: int) -> RequestColumns:
        return simulated(source.build(rate=rate, num_requests=num_requests, seed=seed))

    return run


def do_job(job: Job, question: Question, serving: Serving, source: WorkloadSource) -> Answer:
    """Simulate one candidate for a question."""
    run = run_of(job.candidate, serving, source, question.seed)
    if question.rate is not None:
        found, columns = look(run, question.rate, question.slo, question.effort)
        rate = question.rate if found.verdict is Verdict.GOOD else 0.0
        return Answer(job.candidate, job.bounds, Goodput(rate, rate, job.bounds.rate, (found,), columns),
                      job.bounds.binding if rate else f"misses at this rate ({found.verdict.value})")  # fmt: skip
    goodput = find_goodput(
        run, question.slo, job.bounds.rate, question.effort, worth=lambda rate: rate > job.floor * 1.0001
    )
    return Answer(job.candidate, job.bounds, goodput, job.bounds.binding)


Dispatch = Callable[[Iterator[Job]], Iterable[Answer]]
"""Carries out jobs, one after another or side by side; takes the next job only when it can begin it."""


class Search:
    """One search under way: gives jobs, takes answers, knows the best."""

    def __init__(self, question: Question, serving: Serving, source: WorkloadSource, num_stats: int = 4000) -> None:
        self.question = question
        self.serving = serving
        self.source = source
        sample = source.build(rate=1.0, num_requests=num_stats, seed=question.seed)
        self._lengths = LengthStats.of(sample, question.slo.attainment)
        self._answers: list[Answer] = []
        self._unfit: list[str] = []
        self._waiting: list[tuple[Candidate, Bounds]] = []
        self.num_candidates = 0

    def screen(self, candidates: Iterable[Candidate]) -> None:
        """Bound every candidate; those that cannot serve at all are answered at once."""
        for candidate in candidates:
            self.num_candidates += 1
            try:
                bounds = bounds_of(candidate, self.serving, self._lengths, self.question.slo)
            except DoesNotFit as error:
                self._unfit.append(str(error))
                continue
            needed = self.question.rate or 0.0
            if bounds.rate <= needed:
                self._answers.append(Answer(candidate, bounds, None, f"{bounds.binding} allows {bounds.rate:.3g}/s"))
            else:
                self._waiting.append((candidate, bounds))
        price = self.question.price
        if self.question.rate is None:
            self._waiting.sort(key=lambda one: (-one[1].rate, price.of(one[0])))
        else:
            self._waiting.sort(key=lambda one: (price.of(one[0]), -one[1].rate))

    def jobs(self) -> Iterator[Job]:
        """The next candidate worth simulating, until there is none."""
        for candidate, bounds in self._waiting:
            why_not = self._hopeless(candidate, bounds)
            if why_not:
                self._answers.append(Answer(candidate, bounds, None, why_not))
            else:
                yield Job(candidate, bounds, self.best.rate if self.best and self.question.rate is None else 0.0)

    def take(self, answer: Answer) -> None:
        """One job is done."""
        self._answers.append(answer)

    @property
    def best(self) -> Answer | None:
        good = [answer for answer in self._answers if answer.rate > 0.0]
        return min(good, key=self._rank) if good else None

    def outcome(self, *, complete: bool) -> Outcome:
        """What is known now."""
        ordered = tuple(sorted(self._answers, key=self._rank))
        return Outcome(self.best, ordered, tuple(self._unfit), complete)

    def _rank(self, answer: Answer) -> tuple[float, ...]:
        """Best first: those that serve, then by what is asked for, then the cheaper, then by what was promised."""
        price = self.question.price.of(answer.candidate)
        if self.question.rate is None:
            return (-answer.rate, price, -answer.bounds.rate)
        return (0.0 if answer.rate else 1.0, price, -answer.bounds.rate)

    def _hopeless(self, candidate: Candidate, bounds: Bounds) -> str:
        best = self.best
        if best is None:
            return ""
        if self.question.rate is None:
            return f"at most {bounds.rate:.3g}/s, by {bounds.binding}" if bounds.rate <= best.rate else ""
        price = self.question.price
        return "" if price.of(candidate) < price.of(best.candidate) else f"no cheaper than {best.candidate}"


def search(question: Question, serving: Serving, source: WorkloadSource, space: Iterable[Candidate]) -> Outcome:
    """The whole search in this process."""
    found = Search(question, serving, source)
    found.screen(space)
    for job in found.jobs():
        found.take(do_job(job, question, serving, source))
    return found.outcome(complete=True)


def per_gpu(answer: Answer) -> float:
    """Goodput per GPU, requests per second."""
    return answer.rate / answer.candidate.gpus if answer.candidate.gpus else math.nan
