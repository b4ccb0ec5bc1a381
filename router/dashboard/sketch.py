"""Durations counted in bins of equal ratio: counts add up over time and classes, quantiles come out within 2.2 %."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.uint32]

_PER_OCTAVE = 16  # bins for a factor of two: 4.4 % wide, and a quantile is the middle of its bin
_SMALLEST_S = 1e-4
_LARGEST_S = 1e3
_SHIFT = -math.log2(_SMALLEST_S)
NUM_BINS = math.ceil((math.log2(_LARGEST_S) + _SHIFT) * _PER_OCTAVE) + 1


def bin_of(seconds: float) -> int:
    """Where a duration is counted; what is too short or too long counts in the first or last bin."""
    if seconds <= _SMALLEST_S:
        return 0
    return min(NUM_BINS - 1, int((math.log2(seconds) + _SHIFT) * _PER_OCTAVE))


def middle_of(index: int) -> float:
    """The duration that stands for a bin, seconds."""
    return float(2.0 ** ((index + 0.5) / _PER_OCTAVE - _SHIFT))


def quantiles(counts: Counts, shares: Sequence[float]) -> list[float | None]:
    """The durations below which these shares of the counted ones lie; None where nothing was counted."""
    cumulative = counts.cumsum(dtype=np.int64)
    total = int(cumulative[-1])
    if total == 0:
        return [None] * len(shares)
    ranks = [max(1, math.ceil(share * total)) for share in shares]
    return [middle_of(int(index)) for index in np.searchsorted(cumulative, ranks)]
