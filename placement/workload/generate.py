"""Requests out of distributions: the same seed gives the same workload."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from placement.workload.arrivals import Arrivals
from placement.workload.lengths import LengthPairs
from placement.workload.sharing import Sharing
from placement.workload.workload import Workload

ARRIVALS, LENGTHS, SHARING = range(3)  # streams of a seed: other arrivals leave the lengths as they are


def dice_of(seed: int, stream: int) -> np.random.Generator:
    """Independent numbers for one purpose."""
    return np.random.default_rng([seed, stream])


def generate(
    lengths: LengthPairs, arrivals: Arrivals | None, num: int, seed: int = 0, sharing: Sharing | None = None
) -> Workload:
    """num requests; without arrivals the workload is untimed."""
    prompt, output = lengths.draw(num, dice_of(seed, LENGTHS))
    times = None if arrivals is None else arrivals.times(num, dice_of(seed, ARRIVALS))
    workload = Workload.of(prompt, output, times)
    if sharing is None:
        return workload
    return replace(workload, prefixes=sharing.prefixes(prompt, dice_of(seed, SHARING)))
