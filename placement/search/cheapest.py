"""Which placement carries a rate at the least price: whom to simulate at that rate, and who need not be.

First the cheapest that promises enough and more; then the cheaper ones, the likeliest first: where one fails, all that
have less of the same fail with it. Where it is too close to call, dearer ones are looked at until one carries the rate
with confidence, up to twice the price. Whatever was found is looked at for long at last; if it does not last, the
others are looked at again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from placement.search.answer import Answer
from placement.search.bounds import Bounds
from placement.search.candidate import Candidate, shape_of, within
from placement.search.question import Job, Question
from placement.search.standing import DEARER, Standing

_AMPLE = 1.25


class Cheapest:
    """Gives jobs at the rate that was asked for; `standing` is kept by who takes their answers."""

    def __init__(self, question: Question, standing: Standing) -> None:
        self._question = question
        self._standing = standing
        self._waiting: list[tuple[Candidate, Bounds]] = []
        self._sent: dict[Candidate, bool] = {}  # whether its answer is still to come
        self._skipped: dict[Candidate, Answer] = {}  # not simulated, as long as there is a better one
        self._lasting: set[Candidate] = set()  # looked at for long
        self._failed: dict[tuple[object, ...], list[Candidate]] = {}  # by shape

    @property
    def skipped(self) -> tuple[Answer, ...]:
        """Those that need not be simulated, and why."""
        return tuple(self._skipped.values())

    def add(self, screened: Iterable[tuple[Candidate, Bounds]], rate: float) -> list[tuple[Candidate, Bounds]]:
        """All that may carry the rate; in the order in which they are looked at."""
        ample, price = _AMPLE * rate, self._question.price
        self._waiting = sorted(
            screened,
            key=lambda one: (one[1].rate < ample, price.of(one[0]) if one[1].rate >= ample else 0.0, -one[1].rate),
        )
        return self._waiting

    def jobs(self) -> Iterator[Job | None]:
        """The next thing worth simulating, until there is none; None: not before another answer is there."""
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
            found = (one for one in (self._standing.best, self._standing.sure) if one is not None)
            due = next((one for one in found if one.candidate not in self._lasting), None)
            if due is None:
                return
            self._lasting.add(due.candidate)
            self._sent[due.candidate] = True
            assert due.goodput is not None
            yield Job(due.candidate, due.bounds, 0.0, last=replace(due.goodput, at_rate=None), reason=due.reason)

    def enter(self, answer: Answer) -> None:
        """One job is done."""
        self._sent[answer.candidate] = False
        if answer.goodput is not None and answer.rate == 0.0:
            self._failed.setdefault(shape_of(answer.candidate), []).append(answer.candidate)

    def _hopeless(self, candidate: Candidate) -> str:
        """Why it is not simulated."""
        price, standing = self._question.price, self._standing
        if standing.sure is not None and price.of(candidate) >= price.of(standing.sure.candidate):
            return f"no cheaper than {standing.sure.candidate}"
        if standing.best is not None and standing.too_dear(candidate):
            return f"more than {DEARER:g} times the price of {standing.best.candidate}"
        failed = self._failed.get(shape_of(candidate), ()) if self._failed else ()
        bigger = next((one for one in failed if within(candidate, one)), None)
        return "" if bigger is None else f"{bigger} is not enough"
