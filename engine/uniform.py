"""Random numbers by name: a pure function of (seed, choice index, output index), the same on every worker.

Source: Philox4x32-10, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Four random 32-bit words for a counter of four and a key of two."""
    a, b, c, d = counter
    low, high = key
    for _ in range(ROUNDS):
        first, second = MULTIPLIERS[0] * a, MULTIPLIERS[1] * c
        a, b, c, d = (second >> 32) ^ b ^ low, second & MASK, (first >> 32) ^ d ^ high, first & MASK
        low, high = (low + WEYL[0]) & MASK, (high + WEYL[1]) & MASK
    return a, b, c, d


def uniform(seed: int, choice_index: int, output_index: int) -> float:
    """In [0, 1), 53 random bits."""
    key = (seed & MASK, seed >> 32 & MASK)
    a, b, _, _ = philox((output_index & MASK, output_index >> 32, choice_index & MASK, 0), key)
    return ((a << 21) | (b >> 11)) / (1 << 53)
