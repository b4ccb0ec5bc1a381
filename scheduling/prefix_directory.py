"""What each worker has computed or got lately, by prefix: how much of a prompt is cached where, as far as a router can
know.

Noted for a worker are a prompt when it goes there to be computed, one whose KV has come there from another worker, and
a prompt with its answer when the request ends there: what its cache then keeps.

A text is cut into chunks of CHUNK_TOKENS; what is left over at its end is not looked at. A chunk's key stands for all
tokens up to its end and for the salt:

    key[i] = H(key[i - 1], tokens of chunk i)      key[-1] = H(salt)

Every worker has the keys that were noted for it, the oldest first, and no more of them than its KV pool holds tokens.
A chain is touched from its end to its start, as the pool evicts (scheduling/blocks.py). So a chunk is always
younger than all that follow it, what is forgotten is the end of a chain, and what a worker has of a prompt is its
beginning.

It is a guess: the worker may have evicted what is in here, and never computed what it was sent. The worst that follows
is a prompt computed where it takes longer. So keys need not be safe from collisions, as the names of blocks must be
(scheduling/prefix.py): Python's own hash of a tuple does. It takes 6 microseconds per 1,000 tokens, 256-bit hashes 30.
Such hashes are promised neither to another process (that of a tenant's name is drawn anew in each, that of no
name is not) nor to another version of Python, so keys are never sent. And they take -1 for -2: token ids are never
negative.

Source: the router of SGLang (Zheng et al., NeurIPS 2024), which keeps a radix tree of each worker; fixed chunks need no
tree.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

CHUNK_TOKENS = 128
"""Coarser than a block. A prompt of 15,000 tokens costs 180 microseconds in all (hashed, looked up, noted for two
workers); in chunks of 256 it would be 140, and a system prompt of 200 tokens would not be seen."""


def chunk_keys(token_ids: tuple[int, ...], salt: str) -> list[int]:
    """The keys of a prompt's whole chunks; none, at no cost, for a prompt shorter than one.

    Two workers' caches of one salt (the tenant) share; those of two salts do not, and neither do keys.
    """
    return extended_keys((), token_ids, salt)


def extended_keys(keys: Sequence[int], rest: tuple[int, ...], salt: str) -> list[int]:
    """The keys of a longer text: of its chunks up to now, and of `rest`, the tokens after them."""
    longer = list(keys)
    key = longer[-1] if longer else hash(salt)
    for end in range(CHUNK_TOKENS, len(rest) + 1, CHUNK_TOKENS):
        key = hash((key, rest[end - CHUNK_TOKENS : end]))
        longer.append(key)
    return longer


@dataclass(slots=True)
class _Known:
    """What was noted for one worker, and what it has room for."""

    bit: int  # its own, in the masks
    max_chunks: int
    block_size: int
    chunks: OrderedDict[int, None] = field(default_factory=OrderedDict)  # the oldest first


class PrefixDirectory:
    """One for all workers that keep prefixes; nothing is known of others. Belongs to one thread.

    Memory: an entry for each chunk of each worker, at most pool tokens / CHUNK_TOKENS of each: 8 workers of a
    million tokens have 10 MB of them.
    """

    def __init__(self) -> None:
        self._workers: dict[str, _Known] = {}
        self._masks: dict[int, int] = {}  # chunk -> bits of the workers that have it; never 0

    def __bool__(self) -> bool:
        """Whether any worker keeps prefixes: without one nobody needs keys."""
        return bool(self._workers)

    def add(self, worker_id: str, num_blocks: int, block_size: int) -> None:
        """A worker that keeps prefixes came, empty."""
        assert worker_id not in self._workers, f"{worker_id} came twice"
        taken = sum(known.bit for known in self._workers.values())
        lowest_free = ~taken & (taken + 1)
        self._workers[worker_id] = _Known(lowest_free, num_blocks * block_size // CHUNK_TOKENS, block_size)

    def remove(self, worker_id: str) -> None:
        """It is gone, and its cache with it; nothing to do when it keeps none."""
        known = self._workers.pop(worker_id, None)
        if known is not None:
            for key in known.chunks:
                self._clear(key, known.bit)

    def expected(self, keys: Sequence[int], prompt_tokens: int) -> dict[str, int]:
        """Tokens of a prompt that a worker will not compute, for each that has some. Cost: O(chunks + workers).

        Whole blocks, and never the last token: somebody must compute it, to sample from it.
        """
        found: dict[str, int] = {}
        if not keys or keys[0] not in self._masks:
            return found
        depths = self._depths(keys)
        for worker_id, known in self._workers.items():
            tokens = min(depths.get(known.bit, 0) * CHUNK_TOKENS, prompt_tokens - 1)
            if whole := tokens - tokens % known.block_size:
                found[worker_id] = whole
        return found

    def note(self, worker_id: str, keys: Sequence[int]) -> None:
        """A text's chunks are on a worker, or will be before anything that is sent there later."""
        known = self._workers.get(worker_id)
        if known is not None:
            self._touch(known, keys)
            masks, bit = self._masks, known.bit
            for key in keys:
                masks[key] = masks.get(key, 0) | bit
            self._forget(known, len(known.chunks) - known.max_chunks)

    def reserve(self, worker_id: str, keys: Sequence[int]) -> None:
        """Room is taken for a text's chunks, which other chunks lose; they are not there before they are noted."""
        known = self._workers.get(worker_id)
        if known is not None:
            self._touch(known, keys)
            self._forget(known, len(known.chunks) - known.max_chunks)

    def missed(self, worker_id: str, num_tokens: int) -> None:
        """The worker had to compute so many tokens that it was expected to have; no news if there are none, or < 0.

        It has them now. But it evicts earlier than is thought here: as much of what was noted longest ago goes.
        """
        known = self._workers.get(worker_id)
        if known is not None and num_tokens >= CHUNK_TOKENS:
            self._forget(known, min(num_tokens // CHUNK_TOKENS, len(known.chunks)))

    def check(self) -> None:
        """Masks tell only of chunks that workers have, or have room for; nobody has more than its pool holds."""
        masks: dict[int, int] = {}
        for known in self._workers.values():
            assert len(known.chunks) <= known.max_chunks, f"{len(known.chunks)} chunks of {known.max_chunks}"
            assert known.bit.bit_count() == 1
            for key in known.chunks:
                masks[key] = masks.get(key, 0) | known.bit
        assert all(there and not there & ~masks.get(key, 0) for key, there in self._masks.items())
        assert len({known.bit for known in self._workers.values()}) == len(self._workers)

    def _depths(self, keys: Sequence[int]) -> dict[int, int]:
        """How many leading chunks the worker of each bit has; those with none are left out."""
        depths: dict[int, int] = {}
        here = self._masks[keys[0]]
        for depth, key in enumerate(keys):
            still = here & self._masks.get(key, 0)
            gone = here ^ still
            while gone:
                bit = gone & -gone
                depths[bit] = depth
                gone ^= bit
            here = still
            if not here:
                return depths
        while here:
            bit = here & -here
            depths[bit] = len(keys)
            here ^= bit
        return depths

    def _touch(self, known: _Known, keys: Sequence[int]) -> None:
        chunks = known.chunks
        for key in reversed(keys):
            chunks[key] = None
            chunks.move_to_end(key)

    def _forget(self, known: _Known, num_chunks: int) -> None:
        for _ in range(num_chunks):
            key, _ = known.chunks.popitem(last=False)
            self._clear(key, known.bit)

    def _clear(self, key: int, bit: int) -> None:
        left = self._masks.get(key, 0) & ~bit
        if left:
            self._masks[key] = left
        else:
            self._masks.pop(key, None)
