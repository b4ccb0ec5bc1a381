"""engine/uniform.py for many rows at once, bit for bit.

On the host: a number is a function of names that the host knows before the step, so the device gets it with the step's
other integers, where computing ten rounds there would be a hundred small kernels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.uniform import MASK, MULTIPLIERS, ROUNDS, WEYL

UInt64s = NDArray[np.uint64]

_MASK, _HALF = np.uint64(MASK), np.uint64(32)


def uniforms(seeds: UInt64s, choices: UInt64s, indices: UInt64s) -> NDArray[np.float64]:
    """[n] in [0, 1): `uniform` of each (seed, choice index, output index)."""
    low, high = seeds & _MASK, seeds >> _HALF
    a, b, c, d = indices & _MASK, indices >> _HALF, choices & _MASK, np.zeros_like(seeds)
    for _ in range(ROUNDS):
        first, second = np.uint64(MULTIPLIERS[0]) * a, np.uint64(MULTIPLIERS[1]) * c
        a, b, c, d = (second >> _HALF) ^ b ^ low, second & _MASK, (first >> _HALF) ^ d ^ high, first & _MASK
        low, high = (low + np.uint64(WEYL[0])) & _MASK, (high + np.uint64(WEYL[1])) & _MASK
    words = (a << np.uint64(21)) | (b >> np.uint64(11))
    return words.astype(np.float64) / float(1 << 53)
