"""`scheduling.blocks.BlockPool` with its prefix cache, compiled: which blocks of which prompts a worker has.

Which block holds what plays no part in time. So a block here is either one of those that have a name (`names`) and are
known by it, with the number of their owners, or it is one of many that nobody else can find, of which the number is
enough. A sequence's first `published` blocks are named, but for copies: its own where a block of that name was there
already (a bit each). What nobody owns and is kept is a list of runs, in the order in which they were let go of; a node
that was taken from it and let go of once more has another stamp than its old run.

Without caching (`worker.prefix_tokens` 0) a block is a number only. Where nothing could be found again there is no
`Cache` but None, for which the whole simulator is compiled apart: what is behind `cache is not None` is not in it.
"""

from __future__ import annotations

from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.kept import evict, keep_run
from placement.simulator.fast.names import WORD_BITS
from placement.simulator.fast.records import Records
from placement.simulator.fast.store import ABSENT, LEAF_BITS, RESERVED, Cache, new_leaf, rows_of, span, span_before


@compiled
def count_prefix(worker: Records, cache: Cache, i: int, usable: int) -> tuple[int, int]:
    """`BlockPool.count_prefix` of a prompt's first `usable` blocks."""
    nodes = cache.nodes[worker.index]
    j = idle = 0
    while j < usable:
        name, count = span(worker, cache, i, j, usable)
        row, count = rows_of(worker, cache, name, count)
        if row < 0:
            return j, idle
        for one in range(row, row + count):
            owners = nodes[one].owners
            if owners < 0:
                return j, idle
            idle += 1 if owners == 0 else 0
            j += 1
    return j, idle


@compiled
def take_prefix(worker: Records, cache: Cache, i: int, matched: int) -> None:
    """`BlockPool.match_prefix` of what was counted."""
    nodes = cache.nodes[worker.index]
    j = idle = 0
    while j < matched:
        name, count = span(worker, cache, i, j, matched)
        row, count = rows_of(worker, cache, name, count)
        for one in range(row, row + count):
            idle += 1 if nodes[one].owners == 0 else 0
            nodes[one].owners += 1
        j += count
    worker.idle -= idle
    worker.free -= idle
    worker.named += 1 if matched > 0 else 0


@compiled
def allocate(worker: Records, cache: Cache | None, num: int) -> None:
    """`BlockPool.allocate`, of no more than are free."""
    worker.free -= num
    if cache is not None and worker.idle > worker.free:
        evict(worker, cache, worker.free)


@compiled
def publish(worker: Records, cache: Cache | None, seq: Records, s: int) -> None:
    """`ResultBook._publish`."""
    if cache is not None:
        full = seq.computed // worker.size
        if worker.prefix_tokens > 0 and full > seq.published:
            _publish(worker, cache, seq, s, full)


@compiled
def _publish(worker: Records, cache: Cache, seq: Records, s: int, full: int) -> None:
    nodes, j = cache.nodes[worker.index], seq.published
    while j < full:
        name, count = span(worker, cache, s // 2, j, full)
        row, count = rows_of(worker, cache, name, count)
        if row < 0:
            row = new_leaf(worker, cache, name)
        new = 0
        for one in range(row, row + count):
            if nodes[one].owners == ABSENT:
                nodes[one].owners = 1
                new += 1
            else:
                bits = _bits(cache, s) + j // WORD_BITS
                cache.bits[bits] |= 1 << (j % WORD_BITS)
                seq.copies += 1
            j += 1
        cache.leaves[worker.index, row >> LEAF_BITS].present += new
    seq.published = full
    worker.named += 1


@compiled
def _bits(cache: Cache, s: int) -> int:
    row = cache.names[s // 2]
    return int(row.bits + (s % 2) * row.words)


@compiled
def free_blocks(worker: Records, cache: Cache | None, seq: Records, s: int) -> None:
    """`BlockPool.free` of all that a sequence owns, the last first."""
    worker.free += seq.blocks - seq.published + seq.copies
    seq.blocks = 0
    if cache is not None:
        j = seq.published
        while j > 0:
            name, count = span_before(worker, cache, s // 2, j)
            _let_go(worker, cache, seq, s, name, j - count, count)
            j -= count
        seq.published = seq.copies = 0


@compiled
def _let_go(worker: Records, cache: Cache, seq: Records, s: int, name: int, first: int, count: int) -> None:
    """Of the blocks from `first` on that are its own: those that have no other owner are kept."""
    nodes, bits = cache.nodes[worker.index], _bits(cache, s)
    kept, stamp, k = 0, worker.stamp + 1, 0
    while k < count:  # those of one instant, in whatever order
        row, num = rows_of(worker, cache, name + k, count - k)
        for one in range(num):
            j = first + k + one
            if seq.copies > 0 and cache.bits[bits + j // WORD_BITS] & (1 << (j % WORD_BITS)):
                cache.bits[bits + j // WORD_BITS] ^= 1 << (j % WORD_BITS)
                continue
            node = nodes[row + one]
            node.owners -= 1
            if node.owners == 0:
                node.stamp = stamp
                kept += 1
        k += num
    if kept > 0:
        worker.stamp = stamp
        worker.idle += kept
        worker.free += kept
        keep_run(worker, cache, name, count, stamp)


@compiled
def keep_again(worker: Records, cache: Cache, i: int, num: int, found: bool) -> None:
    """A prompt's first `num` blocks, which nobody owns, are kept as if they were just let go of, the last first.

    Those that were not there are `found` from now on, or are only reserved.
    """
    nodes, j = cache.nodes[worker.index], num
    while j > 0:
        name, count = span_before(worker, cache, i, j)
        worker.stamp += 1
        k = 0
        while k < count:
            row, num_rows = rows_of(worker, cache, name + k, count - k)
            if row < 0:
                row = new_leaf(worker, cache, name + k)
            new = 0
            for one in range(row, row + num_rows):
                absent = nodes[one].owners == ABSENT
                new += 1 if absent else 0
                if found:
                    nodes[one].owners = 0
                elif absent:
                    nodes[one].owners = RESERVED
                nodes[one].stamp = worker.stamp
            cache.leaves[worker.index, row >> LEAF_BITS].present += new
            worker.idle += new
            k += num_rows
        keep_run(worker, cache, name, count, worker.stamp)
        j -= count
