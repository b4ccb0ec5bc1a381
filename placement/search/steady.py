"""Whether a run is steady: how long requests stay, where the beginning ends, whether the backlog grows."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from placement.simulator.results import RequestColumns

NUM_BATCHES = 20
_SURE = 3.0  # standard errors that a slope must be above 0


def longest_stay_s(columns: RequestColumns) -> float:
    """How long requests are in the cluster, the longest tenth left out; 0 when none was served."""
    served = columns.e2e_s[~np.isnan(columns.e2e_s)]
    return float(np.quantile(served, 0.9)) if len(served) else 0.0


def first_steady(columns: RequestColumns, share: float) -> int:
    """The first request that came after `share` of them, and after the first have had time to leave; half at most."""
    num = len(columns.arrival_s)
    filled = int(np.searchsorted(columns.arrival_s, columns.arrival_s[0] + longest_stay_s(columns)))
    return min(max(int(share * num), filled), num // 2)


def grows(columns: RequestColumns, first: int, share: float) -> bool:
    """Whether more than `share` of what arrives from `first` on stays behind, and not only by chance.

    A cluster that is asked for (1 + share) times what it can serve keeps that share of the requests. So an unstable
    rate that is not noticed overstates the goodput by `share` at most.
    """
    backlog = _backlog(columns)[first:]
    means = np.array([part.mean() for part in np.array_split(backlog, NUM_BATCHES)])
    places = np.arange(NUM_BATCHES) - (NUM_BATCHES - 1) / 2
    slope = float(places @ means / (places @ places))
    rest = means - means.mean() - slope * places
    error = math.sqrt(float(rest @ rest) / (NUM_BATCHES - 2) / float(places @ places))
    return slope > share * len(backlog) / NUM_BATCHES and slope > _SURE * error


def _backlog(columns: RequestColumns) -> npt.NDArray[np.float64]:
    """Requests in the cluster when each arrives; those that are never served stay."""
    arrival_s = columns.arrival_s
    ends = np.sort(arrival_s + np.nan_to_num(columns.e2e_s, nan=np.inf))
    gone = np.searchsorted(ends, arrival_s, side="right")
    backlog: npt.NDArray[np.float64] = np.arange(len(arrival_s), dtype=float) - gone
    return backlog
