"""`scheduling.blocks.BlockPool` with its prefix cache, compiled: which blocks of which prompts a worker has.

Which block holds what plays no part in time. So a block here is either one of those that have a name (`names`) and are
known by it, with the number of their owners, or it is one of many that nobody else can find, of which the number is
enough. A sequence's first `published` blocks are named, but for copies: its own where a block of that name was there
already (a bit each). What nobody owns and is kept is a list of runs, in the order in which they were let go of; a node
that was taken from it and let go of once more has another stamp than its old run.

Without caching (`worker.prefix_tokens` 0) a block is a number only. Where no worker caches there is no `Cache` but
None, for which the whole simulator is compiled apart: what is behind `cache is not None` is not in it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.names import WORD_BITS, Names, names_of
from placement.simulator.fast.records import Records
from placement.workload.workload import Workload

PAGE_BITS = 4
PAGE = 1 << PAGE_BITS
_ABSENT = -1
_SPARE_RUNS = 64

node = np.dtype([("owners", "i4"), ("stamp", "i4")])
page = np.dtype([("present", "i4"), ("next", "i4")])
run = np.dtype([("node", "i8"), ("count", "i4"), ("stamp", "i4"), ("next", "i4"), ("unused", "i4")])


class Cache(NamedTuple):
    """Of all workers. Names are kept in pages; page 0 is none."""

    names: Any  # [requests] of `name`
    runs: Any  # as `Names.runs`
    bits: Any  # [words] which blocks of a sequence are copies
    directory: Any  # [workers, names / PAGE] pages
    pages: Any  # [workers, pages]
    nodes: Any  # [workers, pages * PAGE]
    idle: Any  # [workers, runs]: of blocks that nobody owns, least recently owned first


def cache_of(workload: Workload, workers: Records) -> Cache | None:
    """For workers that have no block yet; None where no prefix can be found again. Untouched rows take no memory."""
    workers["run_head"] = workers["run_tail"] = workers["free_run"] = -1
    if workload.prefixes is None or not workers["prefix_tokens"].any():
        return None
    found = names_of(workload, int(workers["size"][0]), int(workers["max_len"].max()))
    workers["prefix_tokens"] = found.prefix_tokens * workers["prefix_tokens"]
    return room_for(found, len(workers), int(workers["num_blocks"].max()))


def room_for(names: Names, num_workers: int, most: int) -> Cache:
    """For `most` blocks of each worker: a page for each at most, and as many again of runs that are none any more."""
    num_pages = min(most, names.num_nodes // PAGE + 1) + 2
    return Cache(
        names.rows,
        np.append(names.runs, 0),
        np.zeros(names.num_words, np.int64),
        np.zeros((num_workers, names.num_nodes // PAGE + 1), np.int32),
        np.empty((num_workers, num_pages), page),
        np.empty((num_workers, num_pages * PAGE), node),
        np.empty((num_workers, 2 * most + _SPARE_RUNS), run),
    )


# ---- names ----


@compiled
def _span(worker: Records, cache: Cache, i: int, j: int, end: int) -> tuple[int, int]:
    """The name of a prompt's block j, and how many from it on, before block `end`, are named consecutively."""
    row = cache.names[i]
    if j >= row.shared:
        return row.own + j - row.shared, end - j
    tokens, size = worker.prefix_tokens, worker.size
    level = ((j + 1) * size - 1) // tokens
    last = min(end, row.shared, (level + 1) * tokens // size)
    return cache.runs[row.chain + level] + j - level * tokens // size, last - j


@compiled
def _span_before(worker: Records, cache: Cache, i: int, j: int) -> tuple[int, int]:
    """The same of the blocks up to j, without it: the name of the first of them, and how many they are."""
    row = cache.names[i]
    if j > row.shared:
        return row.own, j - row.shared
    tokens, size = worker.prefix_tokens, worker.size
    level = (j * size - 1) // tokens
    return cache.runs[row.chain + level], j - level * tokens // size


@compiled
def _find(worker: Records, cache: Cache, name: int) -> int:
    """Its row of `nodes`; -1 where the worker has no block of that name."""
    at = cache.directory[worker.index, name >> PAGE_BITS]
    if at == 0:
        return -1
    row = (at << PAGE_BITS) + (name & (PAGE - 1))
    return row if cache.nodes[worker.index, row].owners != _ABSENT else -1


@compiled
def _rows(worker: Records, cache: Cache, name: int, count: int) -> tuple[int, int]:
    """The row of `nodes` for a name, -1 where there is none, and how many of `count` names have the rows from it on."""
    within = name & (PAGE - 1)
    at = cache.directory[worker.index, name >> PAGE_BITS]
    return (at << PAGE_BITS) + within if at > 0 else -1, min(count, PAGE - within)


@compiled
def _new_page(worker: Records, cache: Cache, name: int) -> int:
    """For a name that has no row: the row it has now."""
    index = worker.index
    at = worker.free_page
    if at > 0:
        worker.free_page = cache.pages[index, at].next
    else:
        worker.num_pages += 1
        at = worker.num_pages
    cache.directory[index, name >> PAGE_BITS] = at
    cache.pages[index, at].present = 0
    for row in range(at << PAGE_BITS, (at + 1) << PAGE_BITS):
        cache.nodes[index, row].owners = _ABSENT
    return int((at << PAGE_BITS) + (name & (PAGE - 1)))


@compiled
def _drop(worker: Records, cache: Cache, name: int, row: int) -> None:
    index, at = worker.index, row >> PAGE_BITS
    cache.nodes[index, row].owners = _ABSENT
    cache.pages[index, at].present -= 1
    if cache.pages[index, at].present == 0:
        cache.directory[index, name >> PAGE_BITS] = 0
        cache.pages[index, at].next, worker.free_page = worker.free_page, at


# ---- what a sequence does ----


@compiled
def count_prefix(worker: Records, cache: Cache, i: int, usable: int) -> tuple[int, int]:
    """`BlockPool.count_prefix` of a prompt's first `usable` blocks."""
    nodes = cache.nodes[worker.index]
    j = idle = 0
    while j < usable:
        name, count = _span(worker, cache, i, j, usable)
        row, count = _rows(worker, cache, name, count)
        if row < 0:
            return j, idle
        for one in range(row, row + count):
            owners = nodes[one].owners
            if owners == _ABSENT:
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
        name, count = _span(worker, cache, i, j, matched)
        row, count = _rows(worker, cache, name, count)
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
def evict(worker: Records, cache: Cache, most: int) -> None:
    """What was let go of first, until no more than `most` blocks without an owner are kept."""
    index = worker.index
    while worker.idle > most:
        run = cache.idle[index, worker.run_head]
        while run.count > 0 and worker.idle > most:
            run.count -= 1
            row = _find(worker, cache, run.node + run.count)
            if row >= 0 and cache.nodes[index, row].owners == 0 and cache.nodes[index, row].stamp == run.stamp:
                _drop(worker, cache, run.node + run.count, row)
                worker.idle -= 1
        if run.count == 0:
            at = worker.run_head
            worker.run_head = run.next
            if run.next < 0:
                worker.run_tail = -1
            _free_run(worker, cache, at)


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
        name, count = _span(worker, cache, s // 2, j, full)
        row, count = _rows(worker, cache, name, count)
        if row < 0:
            row = _new_page(worker, cache, name)
        new = 0
        for one in range(row, row + count):
            if nodes[one].owners == _ABSENT:
                nodes[one].owners = 1
                new += 1
            else:
                bits = _bits(cache, s) + j // WORD_BITS
                cache.bits[bits] |= 1 << (j % WORD_BITS)
                seq.copies += 1
            j += 1
        cache.pages[worker.index, row >> PAGE_BITS].present += new
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
            name, count = _span_before(worker, cache, s // 2, j)
            _let_go(worker, cache, seq, s, name, j - count, count)
            j -= count
        seq.published = seq.copies = 0


@compiled
def _let_go(worker: Records, cache: Cache, seq: Records, s: int, name: int, first: int, count: int) -> None:
    """Of the blocks from `first` on that are its own: those that have no other owner are kept."""
    nodes, bits = cache.nodes[worker.index], _bits(cache, s)
    kept, stamp, k = 0, worker.stamp + 1, 0
    while k < count:  # those of one instant, in whatever order
        row, num = _rows(worker, cache, name + k, count - k)
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
        _keep_run(worker, cache, name, count, stamp)


@compiled
def keep_again(worker: Records, cache: Cache, i: int, num: int) -> None:
    """A prompt's first `num` blocks, which nobody owns, are kept as if they were just let go of, the last first."""
    nodes, j = cache.nodes[worker.index], num
    while j > 0:
        name, count = _span_before(worker, cache, i, j)
        worker.stamp += 1
        k = 0
        while k < count:
            row, num_rows = _rows(worker, cache, name + k, count - k)
            if row < 0:
                row = _new_page(worker, cache, name + k)
            new = 0
            for one in range(row, row + num_rows):
                new += 1 if nodes[one].owners == _ABSENT else 0
                nodes[one].owners, nodes[one].stamp = 0, worker.stamp
            cache.pages[worker.index, row >> PAGE_BITS].present += new
            worker.idle += new
            k += num_rows
        _keep_run(worker, cache, name, count, worker.stamp)
        j -= count


# ---- runs of blocks that nobody owns ----


@compiled
def _keep_run(worker: Records, cache: Cache, name: int, count: int, stamp: int) -> None:
    index = worker.index
    if worker.free_run < 0 and worker.num_runs == cache.idle.shape[1]:
        _forget_old(worker, cache)
    at = worker.free_run
    if at >= 0:
        worker.free_run = cache.idle[index, at].next
    else:
        at = worker.num_runs
        worker.num_runs += 1
    run = cache.idle[index, at]
    run.node, run.count, run.stamp, run.next = name, count, stamp, -1
    if worker.run_tail < 0:
        worker.run_head = at
    else:
        cache.idle[index, worker.run_tail].next = at
    worker.run_tail = at


@compiled
def _free_run(worker: Records, cache: Cache, at: int) -> None:
    cache.idle[worker.index, at].next, worker.free_run = worker.free_run, at


@compiled
def _forget_old(worker: Records, cache: Cache) -> None:
    """Runs of which nothing is left go: as many as there are blocks remain, at most."""
    index, before, at = worker.index, -1, worker.run_head
    while at >= 0:
        run = cache.idle[index, at]
        following, left = run.next, False
        for one in range(run.node, run.node + run.count):
            row = _find(worker, cache, one)
            if row >= 0 and cache.nodes[index, row].owners == 0 and cache.nodes[index, row].stamp == run.stamp:
                left = True
                break
        if left:
            before = at
        else:
            if before < 0:
                worker.run_head = following
            else:
                cache.idle[index, before].next = following
            _free_run(worker, cache, at)
        at = following
    worker.run_tail = before
