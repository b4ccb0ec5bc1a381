"""The ledger of a KV pool: which block is free, owned or cached, and by how many owners.

Where a block is, exactly one of:

    free          never written, or its content is forgotten; on the free list
    cached        no owner, content kept under its hash; evicted least recently used first
    referenced    one or more owners (its reference count); counted, for the metrics, as
                  quarantined   an owner has ended but a transfer may still touch the block (block_marks.py)
                  leased        else, an owner holds it for a handoff
                  used          else

Source: PagedAttention (Kwon et al., SOSP 2023), section 4; prefix cache as in vLLM's KVCacheManager.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, MutableSequence
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from pdserve.errors import InvariantViolation, NoFreeBlocks
from scheduling.block_marks import BlockMarks
from scheduling.prefix import BlockHash


@dataclass(frozen=True, slots=True)
class BlockCounts:
    """How many blocks are in each state; they sum to the pool's size."""

    free: int
    used: int
    cached: int
    leased: int
    quarantined: int

    @property
    def total(self) -> int:
        return self.free + self.used + self.cached + self.leased + self.quarantined


class BlockPool:
    """Reference-counted blocks with a prefix cache; owned by one thread.

    `generations[id]` is raised each time a block is given to a new owner, before that owner can write it: a reader in
    another process that sees it unchanged has copied the content it was told of. Matching a cached block does not raise
    it: the content stays.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        prefix_caching: bool = True,
        generations: MutableSequence[int] | memoryview | None = None,
    ) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"pool of {num_blocks} blocks of {block_size} slots: both must be at least 1")
        if generations is not None and len(generations) != num_blocks:
            raise ValueError(f"{len(generations)} generations for {num_blocks} blocks")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.generations: MutableSequence[int] | memoryview = [0] * num_blocks if generations is None else generations
        # Publications and matches so far: without one more of either, no cached prefix has grown or gained an owner.
        self.num_published = self.num_matched = 0
        self.num_references = 0  # sum over all blocks
        self._refs = [0] * num_blocks
        self._hash_of: list[BlockHash | None] = [None] * num_blocks
        self._block_of: dict[BlockHash, int] = {}
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: what was used last is warm
        self._evictable: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self.marks = BlockMarks()

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can give: free or cached without an owner."""
        return len(self._free) + len(self._evictable)

    @property
    def num_referenced(self) -> int:
        return self.num_blocks - len(self._free) - len(self._evictable)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def count_prefix(self, hashes: Iterable[BlockHash]) -> tuple[int, int]:
        """How many blocks the longest cached prefix has, and how many of them nobody references; nothing changes."""
        matched = idle = 0
        for block_hash in hashes:
            block_id = self._block_of.get(block_hash)
            if block_id is None:
                break
            matched += 1
            idle += self._refs[block_id] == 0
        return matched, idle

    def match_prefix(self, hashes: Iterable[BlockHash]) -> list[int]:
        """The blocks of the longest cached prefix, one more reference taken on each."""
        matched: list[int] = []
        block_of = self._block_of
        for block_hash in hashes:
            block_id = block_of.get(block_hash)
            if block_id is None:
                break
            if self._refs[block_id] == 0:
                del self._evictable[block_id]
            self._refs[block_id] += 1
            matched.append(block_id)
        self.num_references += len(matched)
        self.num_matched += bool(matched)
        return matched

    def allocate(self, n: int) -> list[int]:
        """`n` blocks with one reference each, their content undefined; nothing happens on NoFreeBlocks.

        In ascending order: what was freed together lies together, and neighbours are moved as one.
        """
        if n > self.num_free:
            raise NoFreeBlocks(f"{n} KV blocks wanted, {self.num_free} of {self.num_blocks} free")
        block_ids: list[int] = []
        for _ in range(n):
            if self._free:
                block_id = self._free.pop()
            else:
                block_id, _ = self._evictable.popitem(last=False)
                self._unhash(block_id)
            self._refs[block_id] = 1
            self.generations[block_id] += 1
            block_ids.append(block_id)
        self.num_references += n
        block_ids.sort()
        return block_ids

    def free(self, block_ids: Seq[int]) -> None:
        """Drop one reference on each; InvariantViolation, before anything changes, if one has none."""
        refs = self._refs
        for block_id in block_ids:
            if not 0 <= block_id < self.num_blocks or refs[block_id] < 1:
                raise InvariantViolation(f"block {block_id} freed without an owner")
        # A block named twice passes the look above, so each is looked at again. From the end: a chain is of use only
        # from its start, so its tail is to be evicted first.
        for block_id in reversed(block_ids):
            if refs[block_id] < 1:
                raise InvariantViolation(f"block {block_id} freed twice in one call")
            refs[block_id] -= 1
            self.num_references -= 1
            if refs[block_id] == 0:
                if self._hash_of[block_id] is None:
                    self._free.append(block_id)
                else:
                    self._evictable[block_id] = None

    def publish(self, block_id: int, block_hash: BlockHash) -> None:
        """A full block, computed and from now on immutable, enters the cache. A hash that is cached already stays with
        its older block."""
        if not self.prefix_caching:
            return
        if self._refs[block_id] < 1:
            raise InvariantViolation(f"block {block_id} published without an owner")
        known = self._hash_of[block_id]
        if known is not None and known != block_hash:
            raise InvariantViolation(f"block {block_id} published under a second hash: it is immutable")
        if block_hash not in self._block_of:
            self._block_of[block_hash] = block_id
            self._hash_of[block_id] = block_hash
            self.num_published += 1

    def forget(self, block_ids: Iterable[int]) -> None:
        """Take these blocks out of the cache, owners keep them: their content is not to be trusted."""
        for block_id in block_ids:
            if self._hash_of[block_id] is not None:
                self._unhash(block_id)
                if self._refs[block_id] == 0:
                    del self._evictable[block_id]
                    self._free.append(block_id)

    def counts(self) -> BlockCounts:
        """Every block counted once."""
        leased, quarantined = self.marks.num_leased, self.marks.num_quarantined
        return BlockCounts(
            free=len(self._free),
            used=self.num_referenced - leased - quarantined,
            cached=len(self._evictable),
            leased=leased,
            quarantined=quarantined,
        )

    def refs(self, block_id: int) -> int:
        """How many owners a block has."""
        return self._refs[block_id]

    def hash_of(self, block_id: int) -> BlockHash | None:
        """Under what a block is cached."""
        return self._hash_of[block_id]

    def check(self) -> None:
        """InvariantViolation if any of this module's promises is broken. Cost: every block."""
        free, cached = set(self._free), set(self._evictable)
        _require(len(free) == len(self._free), "a block is on the free list twice")
        _require(not free & cached, "a block is both free and cached")
        for block_id in range(self.num_blocks):
            idle = block_id in free or block_id in cached
            _require(self._refs[block_id] >= 0, f"block {block_id} has a negative reference count")
            _require(idle == (self._refs[block_id] == 0), f"block {block_id} is lost, or free with an owner")
            block_hash = self._hash_of[block_id]
            _require(block_hash is None or self._block_of.get(block_hash) == block_id, f"block {block_id}: stray hash")
            _require(not (block_id in free and block_hash is not None), f"free block {block_id} has a hash")
            _require(not (block_id in cached and block_hash is None), f"cached block {block_id} has no hash")
        for block_hash, block_id in self._block_of.items():
            _require(self._hash_of[block_id] == block_hash, f"hash names block {block_id}, which has another")
        self.marks.check(self._refs)
        _require(self.num_references == sum(self._refs), "the sum of references is wrong")
        counts = self.counts()
        _require(counts.total == self.num_blocks and counts.used >= 0, f"blocks do not add up: {counts}")

    def _unhash(self, block_id: int) -> None:
        block_hash = self._hash_of[block_id]
        assert block_hash is not None
        del self._block_of[block_hash]
        self._hash_of[block_id] = None


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise InvariantViolation(message)
