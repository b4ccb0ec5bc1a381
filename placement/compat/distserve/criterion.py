"""DistServe's criterion: the 90th percentile, interpolated linearly, is below the target."""

from __future__ import annotations

import math

import numpy as np

from placement.compat.requests import Floats
from placement.compiled import compiled

QUANTILE = 0.9


def most_late(num: int) -> int:
    """With more values at or above the target than this, the percentile cannot be below it."""
    return num - 1 - math.floor((num - 1) * QUANTILE)


@compiled
def is_below(values: Floats, target: float) -> bool:
    """Whether the percentile of the values is below target; found without sorting them.

    The percentile lies between the k-th and the next value in order. Only where the target lies between those two
    do their sizes matter; and then they are the largest below and the smallest not below it.
    """
    rank = (len(values) - 1) * QUANTILE
    k = int(np.floor(rank))
    below, above, late = -np.inf, np.inf, 0
    for value in values:
        if value < target:
            below = max(below, value)
        else:
            late += 1
            above = min(above, value)
    if late != len(values) - 1 - k or late == 0:
        return bool(late < len(values) - 1 - k or late == 0)
    share = rank - k
    between = below + (above - below) * share if share < 0.5 else above - (above - below) * (1.0 - share)
    return bool(between < target)
