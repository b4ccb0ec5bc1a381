"""The search: screen by bounds, simulate the promising ones best first, stop when nothing left can win.

Two questions. *Most*: the placement within the budget with the highest steady goodput; and the best of the other kind,
split or colocated, where that is not far behind (race.py). *Least*: the cheapest placement (GPUs, dollars or watts)
that carries a given rate (cheapest.py). For both, one whose bound cannot beat the best found so far is never simulated.
Nothing here simulates: it says what to simulate next (job.py, parallel.py do).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from placement.search.answer import Answer, Outcome
from placement.search.bounds import Bounds, Screen
from placement.search.build import DoesNotFit, Serving
from placement.search.candidate import Candidate
from placement.search.cheapest import Cheapest
from placement.search.question import Job, Question
from placement.search.race import Races, Runner
from placement.search.standing import Standing
from placement.search.trace import judged_of, recorded_in, sample_of
from placement.workload.source import WorkloadSource


class Search:
    """One search under way: gives jobs, takes answers, knows the best."""

    def __init__(self, question: Question, serving: Serving, source: WorkloadSource) -> None:
        self.question = question
        self.serving = serving
        self.source = source
        self._bounds = Screen(serving, question.slo, sample_of(source, question.seed))
        self._unfit: list[str] = []
        self._waiting: list[tuple[Candidate, Bounds]] = []
        self._standing = Standing(question)
        self._races = Races(question.slo.attainment, question.effort)
        self._cheapest = Cheapest(question, self._standing)
        self.num_candidates = 0

    def screen(self, candidates: Iterable[Candidate]) -> None:
        """Bound every candidate; those that cannot serve at all are answered at once. Called once."""
        rate, price, value = self.question.rate, self.question.price, self.question.value
        for candidate in candidates:
            self.num_candidates += 1
            try:
                bounds = self._bounds(candidate)
            except DoesNotFit as error:
                self._unfit.append(str(error))
                continue
            if bounds.rate <= (rate or 0.0):
                why = f"{bounds.binding} allows {bounds.rate:.3g}/s"
                self._standing.leave_out(Answer(candidate, bounds, None, why))
            else:
                self._waiting.append((candidate, bounds))
        if rate is not None:
            self._waiting = self._cheapest.add(self._waiting, rate)
        else:
            self._waiting.sort(key=lambda one: (-value(one[1].rate, one[0]), price.of(one[0])))
            for candidate, bounds in self._waiting:
                self._races.add(candidate, bounds, value(1.0, candidate))
        self._standing.settle_ties([candidate for candidate, _ in self._waiting])

    @property
    def screened(self) -> list[tuple[Candidate, Bounds]]:
        """Those that may serve, by their bounds; the likeliest first."""
        return self._waiting

    def jobs(self) -> Iterator[Job | None]:
        """The next thing worth simulating, until there is none; None: not before another answer is there."""
        if self.question.rate is not None:
            yield from self._cheapest.jobs()
            return
        for one in self._races.heats():
            yield None if one is None else _job_of(one)

    def take(self, answer: Answer) -> None:
        """One job is done."""
        if self.question.rate is not None:
            self._cheapest.enter(answer)
        elif not self._races.enter(answer.candidate, answer.goodput, answer.reason):
            return
        self._standing.enter(answer)

    @property
    def num_answered(self) -> int:
        return len(self._standing) + len(self._cheapest.skipped) + self._races.num_open

    @property
    def best(self) -> Answer | None:
        """So far; what was only seen in a short run where that is all there is."""
        return self._standing.best or self.outcome(complete=False).best

    def outcome(self, *, complete: bool) -> Outcome:
        """What is known now."""
        standing = self._standing
        unsettled = (_so_far(runner) for runner in self._races if runner.found is None)
        known = sorted((*standing, *self._cheapest.skipped, *unsettled), key=standing.rank)
        best = standing.best or next((one for one in known if one.rate > 0.0), None)
        sure = None if standing.sure is None or standing.too_dear(standing.sure.candidate) else standing.sure
        trace = recorded_in(self.source), judged_of(self.source)
        return Outcome(best, sure, tuple(known), tuple(self._unfit), complete, None, *trace)


def _job_of(runner: Runner) -> Job:
    heat = runner.heat
    last = runner.found if heat.last else None
    return Job(runner.candidate, runner.bounds, heat.floor, heat.rate, runner.hints, last, runner.reason)


def _so_far(runner: Runner) -> Answer:
    bounds, goodput = runner.bounds, runner.goodput
    if not goodput.probes:
        return Answer(runner.candidate, bounds, None, f"at most {bounds.rate:.3g}/s, by {bounds.binding}")
    why = f"given up: less than {runner.most:.3g}/s; {runner.reason}"
    return Answer(runner.candidate, bounds, goodput, why, below=runner.most)
