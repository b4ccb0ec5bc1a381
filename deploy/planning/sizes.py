"""How large the clusters are that a question is searched over: all up to some size, then parts of a whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from placement.search.answer import Outcome
from placement.search.candidate import Candidate, Pool
from placement.search.question import Price, Question
from placement.search.scale import MOST_COPIES, PART_GPUS, part_of
from placement.search.space import Space
from placement.search.standing import DEARER

SEARCHED_GPUS = 256  # of larger clusters a part is searched
CHEAP_GPUS = 1024  # of one search, where many cheap ones may cost less than a few dear ones
_FIRST = 8
_SLACK = 1.5  # times what is in proportion: so much may be gained by more GPUs, whose parts fit better

Searched = Callable[[Question, Space], Outcome]
Enlarged = Callable[[Outcome, int], Outcome]
"""The search for one of so many parts -> the whole."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """One question, and what can answer it for one size."""

    question: Question
    space: Space
    searched: Searched
    enlarged: Enlarged
    given: bool  # how many GPUs there are; else as many as a rate asks for

    def find(self) -> Outcome:
        """Interrupted: what was known by then."""
        if self.question.rate is None or self.given:
            return self._within()
        outcome = self._growing(self.question, SEARCHED_GPUS)
        if outcome.best is not None or not outcome.complete:
            return outcome
        copies = 2 * SEARCHED_GPUS // PART_GPUS
        while copies <= MOST_COPIES:
            part = self._part(copies)
            found = self._growing(part, PART_GPUS, first=PART_GPUS, copies=copies)
            if found.best is not None or not found.complete:
                return self.enlarged(found, copies)
            copies *= 2
        return outcome

    def _within(self) -> Outcome:
        """A number of GPUs, or what budgets allow of the cheapest."""
        if self.space.gpus <= SEARCHED_GPUS:
            return self.searched(self.question, self.space)
        copies = math.ceil(self.space.gpus / (2 * PART_GPUS))  # of a smaller part the pools' ratio would be too coarse
        if self.question.rate is not None:
            copies = 1 << (copies - 1).bit_length()
        part = replace(part_of(self.space, copies), gpus=self.space.gpus // copies)
        return self.enlarged(self.searched(self._part(copies), part), copies)

    def _part(self, copies: int) -> Question:
        rate = self.question.rate
        return replace(self.question, rate=None if rate is None else rate / copies)

    def _kinds(self) -> list[Candidate]:
        """One GPU of each type."""
        return [Candidate(None, Pool(gpu, 1), 1) for gpu in (*self.space.prefill_gpus, *self.space.decode_gpus)]

    def _growing(self, question: Question, most: int, first: int = _FIRST, copies: int = 1) -> Outcome:
        """The least for a rate: twice as many GPUs until it is surely carried.

        But not for ever: a share so near to the target that nothing is sure stays so. Interrupted, what was known
        before.
        """

        def searched(gpus: int) -> Outcome:
            return self.searched(question, replace(part_of(self.space, copies), gpus=gpus))

        gpus, rate = first, question.rate or 0.0
        outcome = searched(gpus)
        bounded, at = _bounded(outcome), gpus
        while outcome.complete and gpus < most and not _settled(outcome, gpus):
            gpus *= 2
            if outcome.best is None and 0.0 < _SLACK * bounded * gpus / at < rate:
                continue  # far too few, by the bounds of fewer
            outcome = _known(outcome, searched(gpus))
            bounded, at = _bounded(outcome), gpus
        if outcome.best is None or not outcome.complete or question.price is Price.GPUS:
            return outcome
        # Of cheap GPUs more than that may still cost less.
        least = min(question.price.of(one) for one in self._kinds())
        affordable = min(CHEAP_GPUS, int(question.price.of(outcome.best.candidate) / least))
        return _known(outcome, searched(affordable)) if affordable > gpus else outcome


def _bounded(outcome: Outcome) -> float:
    """Requests per second that no placement exceeds."""
    return max((one.bounds.rate for one in outcome.answers), default=0.0)


def _settled(outcome: Outcome, gpus: int) -> bool:
    """Whether more than `gpus` need not be tried."""
    best = outcome.best
    return outcome.sure is not None or (best is not None and gpus >= DEARER * best.candidate.gpus)


def _known(before: Outcome, after: Outcome) -> Outcome:
    """The larger search, or the smaller one's answer where the larger was interrupted."""
    return after if after.complete or before.best is None else replace(before, complete=False)
