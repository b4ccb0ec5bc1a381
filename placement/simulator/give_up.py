"""When a run need not be carried to its end."""

from __future__ import annotations

from dataclasses import dataclass

from placement.simulator.results import RequestColumns


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End a run as soon as more than `misses` of its requests from number `first` on have missed a target."""

    ttft_s: float
    tpot_s: float
    first: int
    misses: int

    def kept(self, columns: RequestColumns) -> bool:
        """Whether a whole run would have come to its end."""
        missed = ~columns.met(self.ttft_s, self.tpot_s)[self.first :]
        return int(missed.sum()) <= self.misses
