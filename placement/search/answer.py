"""What is told: of one candidate, and of a whole search."""

from __future__ import annotations

from dataclasses import dataclass, replace

from placement.search.binding import Utilisation
from placement.search.bounds import Bounds
from placement.search.candidate import Candidate
from placement.search.goodput import Goodput


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

    @property
    def without_run(self) -> Answer:
        """To be kept or sent: a run is megabytes."""
        return self if self.goodput is None else replace(self, goodput=replace(self.goodput, at_rate=None))

    def surely_good(self, target: float) -> bool:
        """Of a rate that was asked for: whether it is carried with confidence, not perhaps by chance."""
        return self.goodput is not None and self.rate > 0.0 and self.goodput.probes[0].surely_good(target)

    def maybe_good(self, target: float) -> bool:
        """Of a rate that was asked for and not carried: whether that may be chance."""
        missed = self.goodput is not None and self.rate == 0.0
        return missed and self.goodput is not None and not self.goodput.probes[0].surely_bad(target)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search found."""

    best: Answer | None  # None: no candidate can
    sure: Answer | None  # of a rate that was asked for: the cheapest that carries it with confidence
    answers: tuple[Answer, ...]  # every candidate that fits, best first
    unfit: tuple[str, ...]  # why others do not fit
    complete: bool  # False: interrupted
    scaled: Scaled | None = None  # of a cluster too large to search
    num_recorded: int = 0  # requests of the trace; 0: there is none
    num_judged: int = 0  # of them, by which a run that decides judges


@dataclass(frozen=True, slots=True)
class Scaled:
    """How a large cluster was found (scale.py)."""

    part: Outcome  # the search for one part
    copies: int
    num_joined: int = 0  # simulations of some parts as one cluster
    num_whole: int = 0  # simulations of the whole
