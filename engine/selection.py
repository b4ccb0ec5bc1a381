"""Parts of a long row of numbers without sorting it: the k highest, the heaviest that reach a share, one drawn.

All pure functions of the row. Ties are broken by position, the first one wins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64s = NDArray[np.float64]
Indexes = NDArray[np.int64]

_GROUP = 64  # of numbers whose maximum is looked at first
_BLOCK = 256  # of weights that are summed before a draw looks closer
_SORTED = 2048  # so few are simply sorted


def highest(scores: Float64s, count: int) -> Indexes:
    """Where the `count` highest are, in order of position; ties with the last of them are all there."""
    count = min(count, len(scores))
    groups = len(scores) // _GROUP
    if 0 < count <= groups // 2:
        # Of so many maxima of groups, each is one number: at least `count` numbers reach the count-th of them.
        tops = scores[: groups * _GROUP].reshape(_GROUP, groups).max(0)
        indexes = np.flatnonzero(scores >= np.partition(tops, groups - count)[groups - count])
    else:
        indexes = np.arange(len(scores))
    candidates = scores[indexes]
    return indexes[candidates >= np.partition(candidates, -count)[-count]]


def drop_beyond(weights: Float64s, share: float) -> None:
    """Zero every weight before which, from the heaviest down, `share` (below 1) of the total is reached. In place.

    The heaviest stays in any case. Cost: O(n); only the border is sorted.
    """
    total = float(weights.sum())
    wanted = share * total
    # All weights below this together are less than 1 - share: the others reach it without them.
    indexes = np.flatnonzero(weights >= (1.0 - share) * total / len(weights))
    kept: list[Indexes] = [np.array([weights.argmax()])]
    above = 0.0  # sum of the weights that are in for certain; all of them are heavier than those still open
    while len(indexes) > _SORTED:
        open_weights = weights[indexes]
        heavy = open_weights > np.median(open_weights[:: len(indexes) // 255])
        heavy_sum = float(open_weights[heavy].sum())
        if not heavy.any():
            break  # many equal ones: sorting them is cheap
        if above + heavy_sum >= wanted:
            indexes = indexes[heavy]
        else:
            kept.append(indexes[heavy])
            above += heavy_sum
            indexes = indexes[~heavy]
    order = indexes[np.argsort(-weights[indexes], kind="stable")]
    edges = above + np.cumsum(weights[order])
    kept.append(order[edges - weights[order] < wanted])
    staying = np.concatenate(kept)
    values = weights[staying]
    weights[:] = 0.0
    weights[staying] = values


def draw(weights: Float64s, number: float) -> int:
    """Inverse CDF in order of position at `number`, in [0, 1), of the total; never a position of weight 0."""
    whole = len(weights) // _BLOCK
    if whole < 2:
        return _invert(weights, 0.0, number * float(weights.sum()))
    sums = np.append(weights[: whole * _BLOCK].reshape(whole, _BLOCK).sum(1), weights[whole * _BLOCK :].sum())
    edges = np.cumsum(sums)
    target = number * float(edges[-1])
    block = int(np.searchsorted(edges, target, side="right"))
    block = min(block, int(np.flatnonzero(sums)[-1]))
    before = float(edges[block - 1]) if block else 0.0
    first = block * _BLOCK
    return first + _invert(weights[first : first + _BLOCK], before, target)


def _invert(weights: Float64s, before: float, target: float) -> int:
    """The first position up to which `before` and the weights are more than `target`; at most the last that has any."""
    at = int(np.searchsorted(before + np.cumsum(weights), target, side="right"))
    return min(at, int(np.flatnonzero(weights)[-1]))
