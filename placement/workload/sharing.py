"""Which prompts begin alike: block ids for made workloads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from placement.workload.request import DEFAULT_BLOCK_TOKENS
from placement.workload.workload import Ints, Prefixes


class Sharing(Protocol):
    """Gives every prompt the ids of its blocks."""

    def prefixes(self, prompt_tokens: Ints, dice: np.random.Generator) -> Prefixes: ...


@dataclass(frozen=True, slots=True)
class SystemPrompts:
    """Every prompt begins with one of a few system prompts of the same length; only those blocks have ids."""

    tokens: int
    num_prompts: int = 1
    block_tokens: int = 16

    def prefixes(self, prompt_tokens: Ints, dice: np.random.Generator) -> Prefixes:
        whole = self.tokens // self.block_tokens
        blocks = np.minimum(whole, prompt_tokens // self.block_tokens)
        offsets = np.concatenate(([0], np.cumsum(blocks))).astype(np.int64)
        place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], blocks)
        which = dice.integers(self.num_prompts, size=len(prompt_tokens))
        return Prefixes(np.repeat(which, blocks) * max(1, whole) + place, offsets, self.block_tokens)


@dataclass(frozen=True, slots=True)
class Families:
    """Conversations and shared documents: a prompt goes on from an earlier one's family with probability `reuse`.

    A family is picked as often as it has members (so few are large), and a member has `depth` of its blocks in common
    with it. The last, partial block of a prompt is nobody else's. Age plays no part: the next member may come much
    later, so a small cache finds more of a real trace, whose users return soon.
    """

    reuse: float
    depth: float
    block_tokens: int = DEFAULT_BLOCK_TOKENS

    def prefixes(self, prompt_tokens: Ints, dice: np.random.Generator) -> Prefixes:
        num = len(prompt_tokens)
        blocks = -(-prompt_tokens // self.block_tokens)
        shared = np.minimum(np.rint(self.depth * blocks), prompt_tokens // self.block_tokens).astype(np.int64)
        family = self._families(num, dice)
        offsets = np.concatenate(([0], np.cumsum(blocks))).astype(np.int64)
        place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], blocks)
        longest = int(shared.max(initial=0)) + 1
        common = np.repeat(family, blocks) * longest + place
        own = num * longest + np.arange(offsets[-1])
        return Prefixes(np.where(place < np.repeat(shared, blocks), common, own), offsets, self.block_tokens)

    def _families(self, num: int, dice: np.random.Generator) -> Ints:
        joins, member = dice.random((num, 2)).T
        family = np.arange(num)
        for index in np.flatnonzero(joins[1:] < self.reuse) + 1:
            family[index] = family[int(member[index] * index)]
        return family


def hit_ratio(prefixes: Prefixes) -> float:
    """Share of the blocks that an endless cache would have had when their prompt came."""
    seen: set[int] = set()
    hits = 0
    for index in range(len(prefixes.offsets) - 1):
        ids = prefixes.of(index).tolist()
        hits += next((place for place, one in enumerate(ids) if one not in seen), len(ids))
        seen.update(ids)
    return hits / max(1, len(prefixes.ids))
