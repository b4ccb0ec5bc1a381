"""The ledger of a KV pool."""

from __future__ import annotations

import random
from array import array
from collections import Counter

import pytest

from pdserve.errors import InvariantViolation, NoFreeBlocks
from pdserve.kv_memory import KvMemory
from scheduling.blocks import BlockCounts, BlockPool


def name(n: int) -> bytes:
    return n.to_bytes(32, "big")


def cached_pool(num_blocks: int, num_cached: int) -> tuple[BlockPool, list[int]]:
    """A pool whose first blocks are cached under names 0, 1, ... and owned by nobody."""
    pool = BlockPool(num_blocks, 4)
    block_ids = pool.allocate(num_cached)
    for index, block_id in enumerate(block_ids):
        pool.publish(block_id, name(index))
    pool.free(block_ids)
    pool.check()
    return pool, block_ids


def test_allocation_is_all_or_nothing() -> None:
    """Too much asked raises NoFreeBlocks, names both numbers and changes nothing."""
    pool = BlockPool(4, 16)
    first = pool.allocate(3)
    generations = list(pool.generations)
    with pytest.raises(NoFreeBlocks, match="2 KV blocks wanted, 1 of 4 free"):
        pool.allocate(2)
    assert pool.num_free == 1 and list(pool.generations) == generations
    assert len({*first, *pool.allocate(1)}) == 4
    pool.check()


def test_blocks_freed_together_lie_together() -> None:
    """Whether they come from the free list or out of the cache, an allocation is in ascending order: one run."""
    pool = BlockPool(8, 4)
    first, second = pool.allocate(4), pool.allocate(4)
    assert (first, second) == ([0, 1, 2, 3], [4, 5, 6, 7])
    for index, block_id in enumerate(second):
        pool.publish(block_id, name(index))
    pool.free(second)
    pool.free(first)
    assert pool.allocate(4) == first
    assert pool.allocate(4) == second
    pool.check()


def test_generation_rises_with_every_new_owner_and_only_then() -> None:
    """Allocation raises it, by one; freeing, publishing and matching do not."""
    pool = BlockPool(1, 4)
    for owner in range(1, 4):
        (block_id,) = pool.allocate(1)
        assert pool.generations[block_id] == owner
        pool.publish(block_id, name(owner))
        assert pool.match_prefix([name(owner)]) == [block_id]
        pool.free([block_id])
        pool.free([block_id])
        assert pool.match_prefix([name(owner)]) == [block_id]
        pool.free([block_id])
        assert pool.generations[block_id] == owner


def test_generations_may_live_in_shared_memory() -> None:
    """A 64-bit view of a KV pool's memory is raised in place."""
    memory = KvMemory(4, 64)
    pool = BlockPool(4, 4, generations=memory.generations)
    block_ids = pool.allocate(2)
    assert [memory.generations[block_id] for block_id in range(4)] == [int(b in block_ids) for b in range(4)]
    with pytest.raises(ValueError, match="3 generations for 4 blocks"):
        BlockPool(4, 4, generations=array("Q", [0, 0, 0]))


def test_longest_cached_prefix_is_matched_and_referenced() -> None:
    """The match stops at the first hole, and each of its blocks has one owner more."""
    pool, (a, b, c) = cached_pool(4, 3)
    assert pool.count_prefix([name(0), name(1), name(9), name(2)]) == (2, 2)
    assert pool.match_prefix([name(0), name(1), name(9), name(2)]) == [a, b]
    assert [pool.refs(block_id) for block_id in (a, b, c)] == [1, 1, 0]
    assert pool.count_prefix([name(0), name(1), name(9)]) == (2, 0) and pool.refs(a) == 1
    assert pool.match_prefix([name(0)]) == [a] and pool.refs(a) == 2
    assert pool.match_prefix([name(9)]) == [] and pool.match_prefix([]) == []
    pool.check()


def test_a_matched_block_is_never_evicted() -> None:
    """With everything else taken, the pool refuses rather than give a block that has an owner."""
    pool, (a, b) = cached_pool(3, 2)
    assert pool.match_prefix([name(0)]) == [a]
    assert set(pool.allocate(2)) == {b, 2}
    with pytest.raises(NoFreeBlocks):
        pool.allocate(1)
    assert pool.match_prefix([name(0)]) == [a]
    assert pool.match_prefix([name(1)]) == []
    pool.check()


def test_free_blocks_go_before_cached_ones_and_the_least_recently_used_of_those_first() -> None:
    """The end of a chain goes before its start, an old chain before one that was just used."""
    pool, (a, b, c) = cached_pool(5, 3)
    assert not {a, b, c} & set(pool.allocate(2))
    assert pool.allocate(1) == [c], "the chain's end is of no use without its start"
    pool.free(pool.match_prefix([name(0)]))
    assert pool.allocate(1) == [b]
    assert pool.allocate(1) == [a]
    pool.check()


def test_an_evicted_block_is_no_longer_found() -> None:
    """Its hash goes with it, and may be published again by another block."""
    pool, (a,) = cached_pool(1, 1)
    assert pool.allocate(1) == [a]
    assert pool.match_prefix([name(0)]) == [] and pool.hash_of(a) is None
    pool.publish(a, name(0))
    assert pool.match_prefix([name(0)]) == [a]
    pool.check()


def test_freeing_what_is_free_is_our_bug() -> None:
    """Unknown, free, cached and doubled ids raise; the look comes before any change."""
    pool, (cached,) = cached_pool(3, 1)
    (mine,) = pool.allocate(1)
    for wrong in ([mine, cached], [mine, 2 if mine != 2 else 1], [mine, 3], [mine, -1]):
        with pytest.raises(InvariantViolation):
            pool.free(wrong)
        assert pool.refs(mine) == 1
        pool.check()
    pool.free([mine])
    with pytest.raises(InvariantViolation):
        pool.free([mine])


def test_the_older_block_keeps_a_hash_that_is_published_twice() -> None:
    """The newer one stays private, and is simply free afterwards."""
    pool = BlockPool(2, 4)
    old, new = pool.allocate(2)
    pool.publish(old, name(0))
    pool.publish(new, name(0))
    assert pool.hash_of(new) is None and pool.match_prefix([name(0)]) == [old]
    pool.free([old, old, new])
    assert pool.counts() == BlockCounts(free=1, used=0, cached=1, leased=0, quarantined=0)
    pool.check()


def test_publishing_needs_an_owner_and_never_renames() -> None:
    """A block that nobody owns, or that has a name, cannot be published under a new one."""
    pool = BlockPool(2, 4)
    (mine,) = pool.allocate(1)
    with pytest.raises(InvariantViolation):
        pool.publish(1 - mine, name(0))
    pool.publish(mine, name(0))
    pool.publish(mine, name(0))
    with pytest.raises(InvariantViolation):
        pool.publish(mine, name(1))
    pool.check()


def test_forgotten_blocks_are_not_found_again() -> None:
    """Content that is not to be trusted leaves the cache: blocks without an owner at once, others when freed."""
    pool, (a, b) = cached_pool(2, 2)
    assert pool.match_prefix([name(0)]) == [a]
    pool.forget([a, b])
    assert pool.match_prefix([name(0)]) == [] == pool.match_prefix([name(1)])
    assert pool.counts() == BlockCounts(free=1, used=1, cached=0, leased=0, quarantined=0)
    pool.free([a])
    assert pool.counts().free == 2
    pool.check()


def test_without_prefix_caching_nothing_is_kept() -> None:
    """Publishing has no effect."""
    pool = BlockPool(1, 4, prefix_caching=False)
    block_ids = pool.allocate(1)
    pool.publish(block_ids[0], name(0))
    assert pool.match_prefix([name(0)]) == []
    pool.free(block_ids)
    assert pool.counts().free == 1


def test_counts_tell_leased_and_quarantined_apart_and_count_each_block_once() -> None:
    """A shared block counts by its gravest owner: quarantined, then leased, then used."""
    pool, (a, b) = cached_pool(6, 2)
    for _ in range(3):
        pool.match_prefix([name(0), name(1)])
    pool.marks.lease([a, b])
    pool.marks.lease([a])
    pool.marks.quarantine([b])
    assert pool.counts() == BlockCounts(free=4, used=0, cached=0, leased=1, quarantined=1)
    pool.marks.unlease([a])
    assert pool.counts().leased == 1, "one of its two owners still holds it"
    pool.marks.unquarantine([b])
    assert pool.counts() == BlockCounts(free=4, used=0, cached=0, leased=2, quarantined=0)
    pool.check()
    pool.marks.unlease([a, b])
    assert pool.counts() == BlockCounts(free=4, used=2, cached=0, leased=0, quarantined=0)
    with pytest.raises(InvariantViolation):
        pool.marks.unlease([a])
    with pytest.raises(InvariantViolation):
        pool.marks.unquarantine([b])


def test_check_sees_a_mark_that_outlives_its_owner() -> None:
    """Freeing a leased block without ending the lease is a bug that check() names."""
    pool = BlockPool(1, 4)
    block_ids = pool.allocate(1)
    pool.marks.lease(block_ids)
    pool.free(block_ids)
    with pytest.raises(InvariantViolation, match="marks"):
        pool.check()


def test_blocks_for_rounds_up() -> None:
    """A token more than fits takes another block."""
    assert [BlockPool(1, 4).blocks_for(n) for n in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]
    for size in ((0, 4), (4, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            BlockPool(*size)


def test_any_order_of_operations_conserves_blocks() -> None:
    """Against a plain model of who owns what: 3,000 random operations, every promise looked at after each."""
    rng = random.Random(0)
    pool, owners, names = BlockPool(12, 4), [], iter(range(10_000))
    for _ in range(3_000):
        act = rng.random()
        if act < 0.4 and pool.num_free:
            owners.append(pool.allocate(rng.randint(1, min(4, pool.num_free))))
        elif act < 0.55:
            known = [pool.hash_of(block_id) for block_id in range(12)]
            owners.append(pool.match_prefix([h for h in known if h is not None][: rng.randint(0, 3)]))
        elif act < 0.7 and owners:
            for block_id in rng.choice(owners):
                pool.publish(block_id, pool.hash_of(block_id) or name(next(names)))
        elif act < 0.72:
            pool.forget(rng.sample(range(12), 2))
        elif owners:
            pool.free(owners.pop(rng.randrange(len(owners))))
        pool.check()
        held = Counter(block_id for block_ids in owners for block_id in block_ids)
        assert all(pool.refs(block_id) == held[block_id] for block_id in range(12))
        assert pool.counts().used == len(held)
