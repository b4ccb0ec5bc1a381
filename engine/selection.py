"""Parts of a long row of numbers without sorting it: the k highest, the heaviest that reach a share, one drawn.

All pure functions of the row. Ties are broken by position, the first one wins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64s = NDArray[np.float64]
Indexes = NDArray[np.int64]
Flags = NDArray[np.bool_]

_GROUP = 64  # of numbers whose maximum is looked at first
_BLOCK = 256  # of weights that are summed before a draw looks closer
_SORTED = 2048  # so few are simply sorted
_SHIFTS = (46, 34, 22, 10)  # of a float64's bits, those above are compared in each round; the last are left to the sort


def flags_of(bits: bytes, count: int) -> Flags:
    """The first `count` bits, the lowest bit of a byte first; bits that are not there are not set."""
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=count, bitorder="little").view(np.bool_)


def keep(scores: Float64s, flags: Flags) -> tuple[Float64s, Indexes | None]:
    """Scores without those that are not flagged, and the position that each had; None: the position it has.

    Where nearly all stay, the others become minus infinity: that costs less than moving all together, elsewhere more.
    """
    if 4 * np.count_nonzero(flags) > 3 * len(flags):
        return np.where(flags, scores, -np.inf), None
    positions = np.flatnonzero(flags)
    return scores[positions], positions


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
    reached: Indexes = indexes[candidates >= np.partition(candidates, -count)[-count]]
    return reached


def drop_beyond(weights: Float64s, share: float) -> None:
    """Zero every weight before which, from the heaviest down, `share` (below 1) of the total is reached. In place.

    Positive floats are in the order of their bits, so the border is found by their leading bits, then by the next ones
    of those that are equal so far. Cost: O(n); only what is left at the border is sorted.
    """
    bits = weights.view(np.int64)
    total = float(weights.sum())
    wanted, above = share * total, 0.0  # above: of those that stay for certain; all are heavier than those still open
    staying = np.zeros(len(weights), dtype=np.bool_)
    # All weights below this together are less than 1 - share: the others reach it without them.
    open_ones = np.flatnonzero(weights >= (1.0 - share) * total / len(weights))
    for shift in _SHIFTS:
        if len(open_ones) <= _SORTED:
            break
        keys = bits[open_ones] >> shift
        keys -= keys.min()
        key, heavier = _border(keys, weights[open_ones], wanted - above)
        above += heavier
        staying[open_ones[keys > key]] = True
        open_ones = open_ones[keys == key]
    order = open_ones[np.argsort(-weights[open_ones], kind="stable")]
    before = above + np.cumsum(weights[order]) - weights[order]
    staying[order[before < wanted]] = True
    staying[weights.argmax()] = True
    weights *= staying


def _border(keys: Indexes, weights: Float64s, wanted: float) -> tuple[int, float]:
    """The key at which, from the greatest down, the weights reach `wanted`; the weights of those above it."""
    edges = np.cumsum(np.bincount(keys, weights)[::-1])
    at = min(int(np.searchsorted(edges, wanted)), len(edges) - 1)
    return len(edges) - 1 - at, float(edges[at - 1]) if at else 0.0


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
