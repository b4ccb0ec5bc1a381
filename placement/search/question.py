"""What is asked: of a search, and of each simulation that it hands out."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from placement.search.bounds import Bounds, Slo
from placement.search.bracket import Attainment
from placement.search.candidate import Candidate
from placement.search.goodput import Effort, Goodput


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
    """What is asked of a search."""

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
class Job:
    """One candidate to simulate; plain data, so that another process can do it."""

    candidate: Candidate
    bounds: Bounds
    floor: float  # of the rate: what cannot beat it is given up
    rate: float | None = None  # a short run is asked for, at this rate; None: all that the question asks
    hints: tuple[Attainment, ...] = ()  # what short runs told
    last: Goodput | None = None  # what was found: whether it lasts is asked for
    reason: str = ""  # what was found to bind it
