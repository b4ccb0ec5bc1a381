"""Whether a run is steady: how long requests stay, where the beginning ends, whether the backlog grows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.simulator.results import RequestColumns

NUM_BATCHES = 20
_SURE = 3.0  # standard errors that a slope must be above 0
_MATERIAL = 0.2  # of the mean backlog: what a line through it must rise by


def longest_stay_s(columns: RequestColumns) -> float:
    """How long requests are in the cluster, the longest tenth left out; 0 when none was served."""
    served = columns.e2e_s[~np.isnan(columns.e2e_s)]
    return float(np.quantile(served, 0.9)) if len(served) else 0.0


def first_steady(columns: RequestColumns, share: float) -> int:
    """The first request that came after `share` of them, and after the first have had time to leave; half at most."""
    num = len(columns.arrival_s)
    filled = int(np.searchsorted(columns.arrival_s, columns.arrival_s[0] + longest_stay_s(columns)))
    return min(max(int(share * num), filled), num // 2)


@dataclass(frozen=True, slots=True)
class Growth:
    """The share of arriving requests that stays behind, and its standard error.

    A cluster that is asked for (1 + share) times what it can serve keeps that share of the requests: so an unstable
    rate that is not noticed overstates the goodput by that share.
    """

    share: float
    error: float
    mean: float  # of the backlog, as a share of the requests that arrived

    def surely_above(self, limit: float) -> bool:
        """And not what is left of the beginning: a cluster that fills up comes near its steady backlog slowly."""
        return self.share > max(limit, _MATERIAL * self.mean, _SURE * self.error)

    def maybe_above(self, limit: float) -> bool:
        return self.share + 2 * self.error > max(limit, _MATERIAL * self.mean)


def growth_of(columns: RequestColumns, first: int) -> Growth:
    """Of the requests from `first` on: a line through the means of the backlog, batch after batch."""
    backlog = _backlog(columns)[first:]
    means = np.array([part.mean() for part in np.array_split(backlog, NUM_BATCHES)])
    places = np.arange(NUM_BATCHES) - (NUM_BATCHES - 1) / 2
    slope = float(places @ means / (places @ places))
    rest = means - means.mean() - slope * places
    error = math.sqrt(float(rest @ rest) / (NUM_BATCHES - 2) / float(places @ places))
    arrivals = len(backlog) / NUM_BATCHES
    return Growth(slope / arrivals, error / arrivals, float(means.mean()) / len(backlog))


def _backlog(columns: RequestColumns) -> npt.NDArray[np.float64]:
    """Requests in the cluster when each arrives; those that are never served stay."""
    arrival_s = columns.arrival_s
    ends = np.sort(arrival_s + np.nan_to_num(columns.e2e_s, nan=np.inf))
    gone = np.searchsorted(ends, arrival_s, side="right")
    backlog: npt.NDArray[np.float64] = np.arange(len(arrival_s), dtype=float) - gone
    return backlog
