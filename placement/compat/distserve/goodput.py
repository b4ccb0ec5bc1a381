"""What a search is asked and what it answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from placement.compat.distserve.configurations import Configuration


@dataclass(frozen=True, slots=True)
class Slo:
    """Targets in seconds; both have to be met by the 90th percentile."""

    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Bisection:
    """Between 0 and the highest rate, until the interval is no wider than the resolution."""

    max_rate_per_gpu: float
    resolution: float


@dataclass(frozen=True, slots=True)
class Goodput:
    """A row of the table."""

    configuration: Configuration
    per_gpu: float  # requests per second; 0 when no rate that was tried met the criterion


def best_of(table: Iterable[Goodput]) -> Goodput | None:
    """The most goodput per GPU; of equals the fewest GPUs, then the first."""
    return min(table, key=lambda row: (-row.per_gpu, row.configuration.gpus), default=None)
