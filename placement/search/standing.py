"""Who is ahead: the answers so far, the best of them, and of a rate the cheapest that surely carries it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from placement.search.answer import Answer
from placement.search.candidate import Candidate
from placement.search.question import Question

DEARER = 2.0  # times the price of the cheapest that carries a rate: up to there a surer one is looked for


class Standing:
    """Answers, each of another candidate. Only the best keeps its run: a run is megabytes."""

    def __init__(self, question: Question) -> None:
        self.best: Answer | None = None
        self.sure: Answer | None = None  # of a rate that was asked for
        self._question = question
        self._others: list[Answer] = []
        self._place: dict[Candidate, int] = {}

    def __iter__(self) -> Iterator[Answer]:
        yield from self._others
        if self.best is not None:
            yield self.best

    def __len__(self) -> int:
        return len(self._others) + (self.best is not None)

    def settle_ties(self, candidates: Sequence[Candidate]) -> None:
        """Ties go to the one that is simulated first, so that the answer does not depend on who ended first."""
        self._place = {candidate: place for place, candidate in enumerate(candidates)}

    def leave_out(self, answer: Answer) -> None:
        """One that cannot serve, by its bound."""
        self._others.append(answer)

    def enter(self, answer: Answer) -> None:
        """One more, or the same candidate looked at for long."""
        self._forget(answer.candidate)
        if self._question.rate is not None and answer.surely_good(self._question.slo.attainment):
            self.sure = min((one for one in (self.sure, answer) if one is not None), key=self.rank)
        loser: Answer | None = answer
        if answer.rate > 0.0 and (self.best is None or self.rank(answer) < self.rank(self.best)):
            loser, self.best = self.best, answer
        if loser is not None:
            self._others.append(loser.without_run)

    def _forget(self, candidate: Candidate) -> None:
        """What was known of it before it was looked at for long; the next best takes its place until then."""
        if all(one.candidate != candidate for one in self):
            return
        known = sorted((one for one in self if one.candidate != candidate), key=self.rank)
        if self._question.rate is not None:
            self.sure = next((one for one in known if one.surely_good(self._question.slo.attainment)), None)
        self.best = next((one for one in known if one.rate > 0.0), None)
        self._others = [one for one in known if one is not self.best]

    def rank(self, answer: Answer) -> tuple[float, ...]:
        """Best first: those that serve, what is asked for, the cheaper, the surer, by what was promised."""
        price = self._question.price.of(answer.candidate)
        place = float(self._place.get(answer.candidate, len(self._place)))
        if self._question.rate is None:
            return (-self._question.value(answer.rate, answer.candidate), price, -answer.bounds.rate, place)
        if answer.rate > 0.0:
            unsure = 0.0 if answer.surely_good(self._question.slo.attainment) else 1.0
            return (0.0, price, unsure, -answer.bounds.rate, place)
        return (1.0 if answer.goodput is not None else 2.0, -answer.bounds.rate, price, place)

    def too_dear(self, candidate: Candidate) -> bool:
        """To be the surer one of the cheapest; which was found first does not matter."""
        price = self._question.price
        return self.best is not None and price.of(candidate) > DEARER * price.of(self.best.candidate)
