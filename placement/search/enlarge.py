"""One cluster as large as many equal parts: shrunk while it surely carries its load, or looked at for the most."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from placement.search.answer import Answer
from placement.search.bounds import Screen
from placement.search.bracket import Attainment, Verdict, interval
from placement.search.build import Serving, cluster_of
from placement.search.candidate import Candidate
from placement.search.goodput import Goodput, look
from placement.search.job import answer_of, compiled, deciding, do_job, run_of
from placement.search.question import Job, Question
from placement.search.space import Space
from placement.search.trace import sample_of
from placement.simulator.results import SimulationResult
from placement.workload.source import WorkloadSource

_JOINED = 8  # parts that are shrunk together, before they are repeated
_LEAST = 0.5  # of a pool's workers: it is not shrunk further
_FINE = 32  # to one worker in so many
_SHRINK = (0.975, 0.95)  # of the whole, once it carries its load
_LADDER = 0.03  # of the rate: from one look at the most to the next
_LOOKS = 3  # up or down


@dataclass(frozen=True, slots=True)
class Sized:
    """Wholes that came of one part, and how many simulations that took."""

    answers: tuple[Answer, ...]
    num_joined: int = 0
    num_whole: int = 0


def enlarged(
    part: Answer, copies: int, question: Question, space: Space, serving: Serving, source: WorkloadSource
) -> Sized:
    """One cluster as large as so many parts, or a little smaller. Nothing where only the real code could run it."""
    look_at = _Looker(question, space, serving, source)
    if not compiled(part.candidate, serving, source):
        return Sized(())
    return look_at.most(part, copies) if question.rate is None else look_at.least(part, copies, question.rate)


class _Looker:
    """Simulates clusters of one shape, and counts how often."""

    def __init__(self, question: Question, space: Space, serving: Serving, source: WorkloadSource) -> None:
        self._question, self._space, self._serving, self._source = question, space, serving, source
        self._screen = Screen(serving, question.slo, sample_of(source, question.seed))
        self._num = 0

    def least(self, part: Answer, copies: int, rate: float) -> Sized:
        """The smallest that surely carries the rate."""
        alone = part.candidate.replicas > 1  # each replica is in a node of its own: joined is as alone
        joined = copies if alone else min(copies, _JOINED)
        found = self._smallest(_times(part.candidate, joined, replicas=alone), rate * joined / copies)
        num_joined, self._num = (0, self._num) if joined == copies else (self._num, 0)
        if found is None:
            return Sized((), num_joined, self._num)
        if joined == copies:
            return Sized((found,), 0, self._num)
        whole = self._carried(_times(found.candidate, copies // joined), rate)
        if whole is None:
            whole = self._carried(_times(found.candidate, (copies // joined) / _SHRINK[0]), rate)
        else:
            for factor in _SHRINK:
                smaller = self._carried(_times(found.candidate, copies // joined * factor), rate)
                if smaller is None:
                    break
                whole = smaller
        return Sized(() if whole is None else (whole,), num_joined, self._num)

    def most(self, part: Answer, copies: int) -> Sized:
        """As many workers as are allowed, and what they serve."""
        whole = self._filled(part.candidate, copies)
        cluster, bounds = cluster_of(whole, self._serving), self._screen(whole)
        run = run_of(whole, cluster, self._source, self._question.seed)
        effort = deciding(self._question.effort, cluster, self._source)
        probes: list[Attainment] = []
        good: tuple[float, SimulationResult | None] = (0.0, None)
        beyond: SimulationResult | None = None
        rate = min(part.rate * whole.gpus / part.candidate.gpus, bounds.rate)
        for _ in range(_LOOKS):
            found, result = look(run, rate, self._question.slo, effort)
            probes.append(found)
            if found.verdict is Verdict.GOOD:
                good = max(good, (rate, result), key=lambda one: one[0])
            else:
                beyond = result
            if len({one.verdict is Verdict.GOOD for one in probes}) == 2:
                break
            rate *= 1.0 + (_LADDER if found.verdict is Verdict.GOOD else -_LADDER)
        low, high = interval(probes, self._question.slo.attainment, good[0], bounds.rate)
        goodput = Goodput(good[0], low, high, tuple(probes), good[1], beyond)
        return Sized((answer_of(whole, bounds, goodput, cluster, self._question),), 0, len(probes))

    def _smallest(self, candidate: Candidate, rate: float) -> Answer | None:
        """Of what has as many workers or fewer; pool by pool, decode first: its workers are the fewest and largest."""
        best = self._carried(candidate, rate)
        for number, put in _axes(candidate) if best is not None else ():
            assert best is not None
            most = number(best.candidate)
            low, high = int(_LEAST * most), most
            while high - low > max(1, most // _FINE):
                middle = (low + high) // 2
                found = self._carried(put(best.candidate, middle), rate)
                low, high = (low, middle) if found is not None else (middle, high)
                best = found or best
        return best

    def _carried(self, candidate: Candidate, rate: float) -> Answer | None:
        """None: not surely, or not allowed."""
        bounds = self._screen(candidate)
        if bounds.rate <= rate or not self._space.allows(candidate):
            return None
        self._num += 1
        question = replace(self._question, rate=rate)
        answer = do_job(Job(candidate, bounds, 0.0), question, self._serving, self._source)
        return answer if answer.surely_good(question.slo.attainment) else None

    def _filled(self, part: Candidate, copies: int) -> Candidate:
        """So many parts, and as much of another as the budget has room for."""
        alone = part.replicas > 1
        larger = (_times(part, copies + step / 20, replicas=alone) for step in range(20, 0, -1))
        return next((one for one in larger if self._space.allows(one)), _times(part, copies, replicas=alone))


_Number = Callable[[Candidate], int]
_Put = Callable[[Candidate, int], Candidate]


def _axes(candidate: Candidate) -> list[tuple[_Number, _Put]]:
    """What may be fewer."""
    if candidate.replicas > 1:
        return [(lambda one: one.replicas, lambda one, n: replace(one, replicas=n))]
    decode: tuple[_Number, _Put] = (
        lambda one: one.decode.workers,
        lambda one, n: replace(one, decode=replace(one.decode, workers=n)),
    )
    return [decode] if candidate.prefill is None else [decode, (_num_prefill, _with_prefill)]


def _num_prefill(one: Candidate) -> int:
    assert one.prefill is not None
    return one.prefill.workers


def _with_prefill(one: Candidate, workers: int) -> Candidate:
    assert one.prefill is not None
    return replace(one, prefill=replace(one.prefill, workers=workers))


def _times(candidate: Candidate, factor: float, *, replicas: bool = False) -> Candidate:
    """So many times the workers, or the replicas; rounded up."""
    axes = _axes(candidate) if not replicas else _axes(replace(candidate, replicas=max(2, candidate.replicas)))
    for number, put in axes:
        candidate = put(candidate, max(1, math.ceil(number(candidate) * factor - 1e-9)))
    return candidate
