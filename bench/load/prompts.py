"""Prompts out of lengths and block hashes: the same seed gives the same tokens, the same hash the same block."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from placement.workload import Workload

CACHED_BLOCKS = 4096
WORDS = tuple(
    "the of and to in is you that it he was for on are as with his they at be this have from or one had by word but "  # noqa: SIM905
    "not what all were we when your can said there use an each which she do how their if will up other about out many "
    "then them these so some her would make like him into time has look two more write go see number no way could my "
    "people than first water been call who oil its now find long down day did get come made may part".split()
)
"""One token each in tokenizers in use: a prompt of n words has about n tokens."""


class Prompts:
    """The prompts of one workload for one server."""

    def __init__(self, workload: Workload, vocab_size: int, seed: int, as_text: bool) -> None:
        """`as_text`: words, about one token each; also taken where the workload has texts of its own."""
        self._workload, self._seed = workload, seed
        self._as_text = as_text or workload.texts is not None
        # the ends of a vocabulary hold special tokens
        self._low = min(vocab_size // 2, 4 + vocab_size // 50)
        self._high = max(self._low + 1, vocab_size - vocab_size // 10)
        self._block = lru_cache(CACHED_BLOCKS)(self._make_block)

    def of(self, index: int) -> list[int] | str:
        """Cost: some microseconds a block and a tenth of one a token."""
        if self._workload.texts is not None and (text := self._workload.texts[index]):
            return text
        num_tokens = int(self._workload.prompt_tokens[index])
        dice = np.random.default_rng([self._seed, 1, index])
        if self._workload.prefixes is None:
            return self._shown(dice.integers(self._low, self._high, num_tokens))
        shared = [self._block(int(one)) for one in self._workload.prefixes.of(index)]
        known = np.concatenate([*shared, np.zeros(0, np.int64)])[:num_tokens]
        return self._shown(np.concatenate([known, dice.integers(self._low, self._high, num_tokens - len(known))]))

    def _make_block(self, block_id: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        assert self._workload.prefixes is not None
        dice = np.random.default_rng([self._seed, 2, block_id % (1 << 63), int(block_id < 0)])
        return dice.integers(self._low, self._high, self._workload.prefixes.block_tokens)

    def _shown(self, ids: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[int] | str:
        if self._as_text:
            return " ".join(WORDS[one % len(WORDS)] for one in ids.tolist())
        numbers: list[int] = ids.tolist()
        return numbers
