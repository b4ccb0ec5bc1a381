"""Whether a run is steady: how long requests stay, where the beginning ends, whether the cluster keeps up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.search.bracket import LONGEST
from placement.simulator.give_up import GiveUp
from placement.simulator.results import RequestColumns, SimulationResult

Run = Callable[[float, int, GiveUp], SimulationResult]
"""(rate, number of requests, when to give up) -> what happened; the same arguments give the same answer."""

NUM_BATCHES = 20
_MATERIAL = 0.2  # of the mean backlog: what a line through it must rise by
_OVERLOAD = 1.5  # times the rate in question
_ENOUGH = 1.1  # times a rate: who was asked for as much is known to keep up with it or not
_SATURATED = (0.3, 0.8)  # of the requests that left: those before filled the cluster, those after were the last


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
    """The share of arriving requests that stays behind, and its standard error, as a line through the backlog has them.

    Of ten stays it tells little: a cluster comes near its steady backlog slowly, and the backlog of one that is nearly
    full, or of bursts, rises and falls for as long by chance.
    """

    share: float
    error: float
    mean: float  # of the backlog, as a share of the requests that arrived

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


class Saturation:
    """What a placement serves when it is asked for more: it keeps up with a rate below, and with no other.

    That is the saturation rule (Baccelli and Foss, On the saturation rule for the stability of queues, Journal of
    Applied Probability 32, 1995), a theorem where nobody leaves later because others come earlier. One run tells more
    than the backlog of many: what leaves a full cluster varies with the lengths of requests alone. Found when first
    asked for.
    """

    def __init__(self, run: Run, num_requests: int, stays: float) -> None:
        self._run = run
        self._num = num_requests
        self._stays = stays
        self._asked = 0.0
        self._served = 0.0

    @property
    def known(self) -> bool:
        return self._asked > 0.0

    def served(self, rate: float, num_requests: int) -> float:
        """The rate at which requests leave: what it serves at most, or anything above `rate`."""
        if self._asked < _ENOUGH * rate:
            self._asked = _OVERLOAD * rate
            self._served = self._saturated(self._asked, max(num_requests, self._num))
        return self._served

    def _saturated(self, asked: float, num: int) -> float:
        while True:
            columns = self._run(asked, num, GiveUp(math.inf, math.inf, 0, num)).requests
            stayed = columns.e2e_s[~np.isnan(columns.e2e_s)]
            ends = np.sort(columns.arrival_s[~np.isnan(columns.e2e_s)] + stayed)
            first, last = (int(share * (len(ends) - 1)) for share in _SATURATED)
            if last <= first:
                return 0.0  # next to none
            if ends[last] == ends[first] or columns.arrival_s[-1] <= 0.0:
                return asked  # at once
            left = (last - first) / float(ends[last] - ends[first])
            inside_s = float(np.nanmean(columns.e2e_s - columns.queue_s - columns.decode_wait_s))
            needed = min(int(self._stays * inside_s * left), LONGEST)
            if num >= needed:
                return asked * left * float(columns.arrival_s[-1]) / num  # the run may be of one replica
            num = min(2 * needed, LONGEST)
