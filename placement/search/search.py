"""The search: screen by bounds, simulate the promising ones best first, stop when nothing left can win.

Two questions. *Most*: the placement within the budget with the highest steady goodput; and the best of the other kind,
split or colocated, where that is not far behind (race.py). *Least*: the cheapest placement
(GPUs, dollars or watts) that carries a given rate; where that is too close to call, dearer ones are looked at until one
carries it with confidence, up to twice the price. For both, one whose bound cannot beat the best found so far is never
simulated. Nothing here simulates: it says what to simulate next (job.py, parallel.py do).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum

from placement.search.binding import Utilisation
from placement.search.bounds import Bounds, Screen, Slo
from placement.search.bracket import Attainment
from placement.search.build import DoesNotFit, Serving
from placement.search.candidate import Candidate, shape_of, within
from placement.search.goodput import Effort, Goodput
from placement.search.race import Races, Runner
from placement.workload.source import WorkloadSource

_AMPLE = 1.25
DEARER = 2.0  # times the price of the cheapest that carries a rate: up to there a surer one is looked for


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
    per_gpu: bool = False  # the most for each GPU, not in all: of placements that are repeated (DistServe)

    def value(self, rate: float, candidate: Candidate) -> float:
        """What is to be the most."""
        return rate / candidate.gpus if self.per_gpu else rate


@dataclass(frozen=True, slots=True)
class Answer:
    """One candidate, looked at."""

    candidate: Candidate
    bounds: Bounds
    goodput: Goodput | None  # None: screened out
    reason: str  # what binds, or why it was not simulated
    used: Utilisation | None = None  # at its goodput
    below: float | None = None  # given up: it serves less than this, and its rate is a lower bound

    @property
    def rate(self) -> float:
        return self.goodput.rate if self.goodput is not None else 0.0

    @property
    def ceiling(self) -> float:
        """Requests per second that it does not reach, by simulation or by its bound."""
        if self.goodput is None or self.rate > 0.0:
            return self.bounds.rate
        return min((probe.rate for probe in self.goodput.probes), default=self.bounds.rate)

    def surely_good(self, target: float) -> bool:
        """Of a rate that was asked for: whether it is carried with confidence, not perhaps by chance."""
        return self.goodput is not None and self.rate > 0.0 and self.goodput.probes[0].surely_good(target)

    def maybe_good(self, target: float) -> bool:
        """Of a rate that was asked for and not carried: whether that may be chance."""
        missed = self.goodput is not None and self.rate == 0.0
        return missed and self.goodput is not None and not self.goodput.probes[0].surely_bad(target)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found."""

    best: Answer | None  # None: no candidate can
    sure: Answer | None  # of a rate that was asked for: the cheapest that carries it with confidence
    answers: tuple[Answer, ...]  # every candidate that fits, best first
    unfit: tuple[str, ...]  # why others do not fit
    complete: bool  # False: interrupted
    scaled: Scaled | None = None  # of a cluster too large to search
    num_recorded: int = 0  # requests of the trace; 0: there is none


@dataclass(frozen=True, slots=True)
class Scaled:
    """How a large cluster was found (scale.py)."""

    part: Outcome  # the search for one part
    copies: int
    num_joined: int = 0  # simulations of some parts as one cluster
    num_whole: int = 0  # simulations of the whole


@dataclass(frozen=True, slots=True)
class Job:
    """One candidate to simulate; plain data, so that another process can do it."""

    candidate: Candidate
    bounds: Bounds
    floor: float  # of the rate: what cannot beat it is given up
    rate: float | None = None  # a short run is asked for, at this rate; None: all that the question asks
    hints: tuple[Attainment, ...] = ()  # what short runs told
    last: Goodput | None = None  # what was found: whether it lasts is asked for
    reason: str = ""  # what was found to bind it


class Search:
    """One search under way: gives jobs, takes answers, knows the best."""

    def __init__(self, question: Question, serving: Serving, source: WorkloadSource, num_stats: int = 4000) -> None:
        self.question = question
        self.serving = serving
        self.source = source
        sample = source.build(rate=1.0, num_requests=num_stats, seed=question.seed)
        self._bounds = Screen(serving, question.slo, sample)
        self._order: dict[Candidate, int] = {}
        self._answers: list[Answer] = []
        self._unfit: list[str] = []
        self._waiting: list[tuple[Candidate, Bounds]] = []
        self._races = Races(question.slo.attainment, question.effort)
        self._best: Answer | None = None
        self._sure: Answer | None = None
        self._sent: dict[Candidate, bool] = {}  # at the question's rate: whether its answer is still to come
        self._skipped: dict[Candidate, Answer] = {}  # not simulated, as long as there is a better one
        self._lasting: set[Candidate] = set()  # looked at for long
        self._failed: dict[tuple[object, ...], list[Candidate]] = {}  # at the question's rate, by shape
        self.num_candidates = 0

    def screen(self, candidates: Iterable[Candidate]) -> None:
        """Bound every candidate; those that cannot serve at all are answered at once."""
        for candidate in candidates:
            self.num_candidates += 1
            try:
                bounds = self._bounds(candidate)
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
            value = self.question.value
            self._waiting.sort(key=lambda one: (-value(one[1].rate, one[0]), price.of(one[0])))
            for candidate, bounds in self._waiting:
                self._races.add(candidate, bounds, value(1.0, candidate))
        else:
            # First the cheapest that promises enough and more; then the cheaper ones, the likeliest first: where one
            # fails, all that have less of the same fail with it.
            ample = _AMPLE * self.question.rate
            self._waiting.sort(
                key=lambda one: (one[1].rate < ample, price.of(one[0]) if one[1].rate >= ample else 0.0, -one[1].rate)
            )
        self._order = {candidate: place for place, (candidate, _) in enumerate(self._waiting)}

    @property
    def screened(self) -> list[tuple[Candidate, Bounds]]:
        """Those that may serve, by their bounds; the likeliest first."""
        return self._waiting

    def jobs(self) -> Iterator[Job | None]:
        """The next thing worth simulating, until there is none; None: not before another answer is there."""
        if self.question.rate is None:
            for one in self._races.heats():
                yield None if one is None else _job_of(one)
            return
        yield from self._asked()

    def _asked(self) -> Iterator[Job | None]:
        """Of a rate that was asked for. Whatever was found is looked at for long at last; if it does not last, the
        others are looked at again."""
        while True:
            for candidate, bounds in self._waiting:
                if candidate in self._sent:
                    continue
                if why_not := self._hopeless(candidate):
                    self._skipped[candidate] = Answer(candidate, bounds, None, why_not)
                    continue
                self._skipped.pop(candidate, None)
                self._sent[candidate] = True
                yield Job(candidate, bounds, 0.0)
            if any(self._sent.values()):
                yield None
                continue
            found = (one for one in (self._best, self._sure) if one is not None)
            due = next((one for one in found if one.candidate not in self._lasting), None)
            if due is None:
                return
            self._lasting.add(due.candidate)
            self._sent[due.candidate] = True
            assert due.goodput is not None
            yield Job(due.candidate, due.bounds, 0.0, last=replace(due.goodput, at_rate=None), reason=due.reason)

    def take(self, answer: Answer) -> None:
        """One job is done. Only the best keeps its run: a run is megabytes."""
        if self.question.rate is None and not self._races.enter(answer.candidate, answer.goodput, answer.reason):
            return
        self._sent[answer.candidate] = False
        self._forget(answer.candidate)
        if answer.goodput is not None and answer.rate == 0.0 and self.question.rate is not None:
            self._failed.setdefault(shape_of(answer.candidate), []).append(answer.candidate)
        if self.question.rate is not None and answer.surely_good(self.question.slo.attainment):
            self._sure = min((one for one in (self._sure, answer) if one is not None), key=self._rank)
        loser: Answer | None = answer
        if answer.rate > 0.0 and (self._best is None or self._rank(answer) < self._rank(self._best)):
            loser, self._best = self._best, answer
        if loser is not None:
            self._answers.append(_without_run(loser))

    def _forget(self, candidate: Candidate) -> None:
        """What was known of it before it was looked at for long; the next best takes its place until then."""
        known = [*self._answers, *([] if self._best is None else [self._best])]
        if all(one.candidate != candidate for one in known):
            return
        known = sorted((one for one in known if one.candidate != candidate), key=self._rank)
        target = self.question.slo.attainment
        if self.question.rate is not None:
            self._sure = next((one for one in known if one.surely_good(target)), None)
        self._best = next((one for one in known if one.rate > 0.0), None)
        self._answers = [one for one in known if one is not self._best]

    @property
    def num_answered(self) -> int:
        return len(self._answers) + len(self._skipped) + (self._best is not None) + self._races.num_open

    @property
    def best(self) -> Answer | None:
        """So far; what was only seen in a short run where that is all there is."""
        return self._best or self.outcome(complete=False).best

    def outcome(self, *, complete: bool) -> Outcome:
        """What is known now."""
        unsettled = (_so_far(runner) for runner in self._races if runner.found is None)
        skipped = self._skipped.values()
        known = sorted(
            (*self._answers, *skipped, *([] if self._best is None else [self._best]), *unsettled), key=self._rank
        )
        best = self._best or next((one for one in known if one.rate > 0.0), None)
        sure = None if self._sure is None or self._too_dear(self._sure.candidate) else self._sure
        recorded = () if self.source.spec.resample else self.source.recorded or ()
        return Outcome(best, sure, tuple(known), tuple(self._unfit), complete, num_recorded=len(recorded))

    def _rank(self, answer: Answer) -> tuple[float, ...]:
        """Best first: those that serve, what is asked for, the cheaper, the surer, by what was promised.

        Ties go to the one that is simulated first, so that the answer does not depend on who ended first.
        """
        price = self.question.price.of(answer.candidate)
        place = float(self._order.get(answer.candidate, len(self._order)))
        if self.question.rate is None:
            return (-self.question.value(answer.rate, answer.candidate), price, -answer.bounds.rate, place)
        if answer.rate > 0.0:
            unsure = 0.0 if answer.surely_good(self.question.slo.attainment) else 1.0
            return (0.0, price, unsure, -answer.bounds.rate, place)
        return (1.0 if answer.goodput is not None else 2.0, -answer.bounds.rate, price, place)

    def _too_dear(self, candidate: Candidate) -> bool:
        """To be the surer one of the cheapest; which was found first does not matter."""
        price = self.question.price
        return self._best is not None and price.of(candidate) > DEARER * price.of(self._best.candidate)

    def _hopeless(self, candidate: Candidate) -> str:
        """Of a rate that was asked for."""
        price = self.question.price
        if self._sure is not None and price.of(candidate) >= price.of(self._sure.candidate):
            return f"no cheaper than {self._sure.candidate}"
        if self._best is not None and self._too_dear(candidate):
            return f"more than {DEARER:g} times the price of {self._best.candidate}"
        failed = self._failed.get(shape_of(candidate), ()) if self._failed else ()
        bigger = next((one for one in failed if within(candidate, one)), None)
        return "" if bigger is None else f"{bigger} is not enough"


def _job_of(runner: Runner) -> Job:
    heat = runner.heat
    last = runner.found if heat.last else None
    return Job(runner.candidate, runner.bounds, heat.floor, heat.rate, runner.hints, last, runner.reason)


def _without_run(answer: Answer) -> Answer:
    return answer if answer.goodput is None else replace(answer, goodput=replace(answer.goodput, at_rate=None))


def _so_far(runner: Runner) -> Answer:
    bounds, goodput = runner.bounds, runner.goodput
    if not goodput.probes:
        return Answer(runner.candidate, bounds, None, f"at most {bounds.rate:.3g}/s, by {bounds.binding}")
    return Answer(
        runner.candidate,
        bounds,
        goodput,
        f"given up: less than {runner.most:.3g}/s; {runner.reason}",
        below=runner.most,
    )
