"""Which steps are measured: a grid over lengths, chunks, batches and contexts, as far as an engine's limits allow."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, product, zip_longest


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one engine."""

    chunk_tokens: int  # in one step
    max_num_seqs: int
    max_model_len: int
    num_blocks: int
    block_size: int


@dataclass(frozen=True, slots=True)
class Shape:
    """One step: chunks of prompts beside decodes that all have one context."""

    chunks: tuple[tuple[int, int], ...] = ()  # (positions computed before, tokens)
    decodes: int = 0
    context: int = 0  # positions that each decode attends to, its own included

    @property
    def prefill_tokens(self) -> int:
        return sum(tokens for _, tokens in self.chunks)

    @property
    def prefill_pairs(self) -> float:
        """As the simulator counts them."""
        return sum(tokens * (2 * start + tokens + 1) for start, tokens in self.chunks) / 2

    @property
    def context_tokens(self) -> int:
        """As the scheduler counts them: every sequence's positions after the step."""
        return sum(start + tokens for start, tokens in self.chunks) + self.decodes * self.context

    def blocks(self, size: int) -> int:
        """Of the pool."""
        prompts = sum(-(-(start + tokens) // size) for start, tokens in self.chunks)
        return prompts + self.decodes * -(-self.context // size)

    def fits(self, limits: Limits) -> bool:
        longest = max([self.context, *(start + tokens for start, tokens in self.chunks)])
        return (
            self.prefill_tokens + self.decodes <= limits.chunk_tokens
            and len(self.chunks) + self.decodes <= limits.max_num_seqs
            and longest <= limits.max_model_len
            and self.blocks(limits.block_size) <= limits.num_blocks
        )


def shapes(limits: Limits) -> list[Shape]:
    """In an order of which every beginning is spread over the whole grid, kinds in turn."""
    kinds = []
    for kind in (_prefills, _decodes, _mixed):
        found = [one for one in dict.fromkeys(kind(limits)) if one.fits(limits)]
        random.Random(0).shuffle(found)
        kinds.append(found)
    return [one for one in chain.from_iterable(zip_longest(*kinds)) if one is not None]


def _sizes(most: int, least: int = 1) -> list[int]:
    """Powers of two with a step between, and the largest."""
    found, size = {most}, least
    while size < most:
        found |= {size, min(most, size + size // 2)}
        size *= 2
    return sorted(found)


def _starts(limits: Limits, tokens: int) -> list[int]:
    room = limits.max_model_len - tokens - 1
    return sorted({0, max(0, room // 3), max(0, room)})


def _prefills(limits: Limits) -> Iterator[Shape]:
    """One prompt's chunk from several starts; several whole prompts in one step."""
    for tokens in _sizes(limits.chunk_tokens, 8):
        for start in _starts(limits, tokens):
            yield Shape(((start, tokens),))
        for num in (2, 4):
            if tokens >= 16 * num:
                yield Shape(((0, tokens // num),) * num)


def _decodes(limits: Limits) -> Iterator[Shape]:
    longest = limits.max_model_len - 1
    for num, context in product(_sizes(limits.max_num_seqs), (longest // 64, longest // 8, longest // 2, longest)):
        yield Shape((), num, max(2, context))


def _mixed(limits: Limits) -> Iterator[Shape]:
    """A chunk beside decodes; among them steps that are full."""
    for num in _sizes(limits.max_num_seqs - 1)[::2]:
        room = limits.chunk_tokens - num
        if room < 1:
            continue
        tokens = sorted({room, *(size for size in _sizes(limits.chunk_tokens, 8)[::3] if size <= room)})
        for size, context in product(tokens, (limits.max_model_len // 16, limits.max_model_len // 2)):
            start = max(0, (limits.max_model_len - size) // 3) if context % 2 else 0
            yield Shape(((start, size),), num, max(2, context))
