"""Blocks that have a name: where a worker keeps what it knows of each, in leaves.

The rules are those of `cache`; here is the room.
"""

from __future__ import annotations

import mmap
from typing import Any, NamedTuple

import numpy as np

from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.names import Names, names_of
from placement.simulator.fast.records import Records
from placement.workload.workload import Workload

LEAF_BITS = 4
LEAF = 1 << LEAF_BITS
ABSENT = -1
RESERVED = -2  # kept, but not to be found
_SPARE_RUNS = 64

node = np.dtype([("owners", "i4"), ("stamp", "i4")])
leaf = np.dtype([("present", "i4"), ("next", "i4")])
run = np.dtype([("node", "i8"), ("count", "i4"), ("stamp", "i4"), ("next", "i4"), ("unused", "i4")])


class Cache(NamedTuple):
    """Of all workers. Names are kept in leaves of LEAF each; leaf 0 is none."""

    names: Any  # [requests] of `name`
    runs: Any  # as `Names.runs`
    bits: Any  # [words] which blocks of a sequence are copies
    directory: Any  # [workers, names / LEAF] leaves
    leaves: Any  # [workers, leaves]
    nodes: Any  # [workers, leaves * LEAF]
    idle: Any  # [workers, runs]: of blocks that nobody owns, least recently owned first


def cache_of(workload: Workload, workers: Records) -> Cache:
    """For workers that have no block yet."""
    workers["run_head"] = workers["run_tail"] = workers["free_run"] = -1
    found = names_of(workload, int(workers["size"][0]), int(workers["max_len"].max()))
    workers["prefix_tokens"] = found.prefix_tokens * workers["caches"]
    return room_for(found, len(workers), int(workers["num_blocks"].max()))


def room_for(names: Names, num_workers: int, most: int) -> Cache:
    """For `most` blocks of each worker: a leaf for each at most, and as many again of runs that are none any more."""
    num_leaves = min(most, names.num_nodes // LEAF + 1) + 2
    return Cache(
        names.rows,
        np.append(names.runs, 0),
        np.zeros(names.num_words, np.int64),
        _sparse(num_workers, names.num_nodes // LEAF + 1, np.dtype(np.int32)),
        _sparse(num_workers, num_leaves, leaf),
        _sparse(num_workers, num_leaves * LEAF, node),
        _sparse(num_workers, 2 * most + _SPARE_RUNS, run),
    )


def _sparse(num_rows: int, num_columns: int, kind: np.dtype[Any]) -> Records:
    """Zeros, of which little will ever be touched: numpy would have the kernel take 2 MiB at once for each touch."""
    room = mmap.mmap(-1, num_rows * num_columns * kind.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        room.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(room, kind).reshape(num_rows, num_columns)


@compiled
def span(worker: Records, cache: Cache, i: int, j: int, end: int) -> tuple[int, int]:
    """The name of a prompt's block j, and how many from it on, before block `end`, are named consecutively."""
    row = cache.names[i]
    if j >= row.shared:
        return row.own + j - row.shared, end - j
    tokens, size = worker.prefix_tokens, worker.size
    level = ((j + 1) * size - 1) // tokens
    last = min(end, row.shared, (level + 1) * tokens // size)
    return cache.runs[row.chain + level] + j - level * tokens // size, last - j


@compiled
def span_before(worker: Records, cache: Cache, i: int, j: int) -> tuple[int, int]:
    """The same of the blocks up to j, without it: the name of the first of them, and how many they are."""
    row = cache.names[i]
    if j > row.shared:
        return row.own, j - row.shared
    tokens, size = worker.prefix_tokens, worker.size
    level = (j * size - 1) // tokens
    return cache.runs[row.chain + level], j - level * tokens // size


@compiled
def find(worker: Records, cache: Cache, name: int) -> int:
    """Its row of `nodes`; -1 where the worker has no block of that name."""
    at = cache.directory[worker.index, name >> LEAF_BITS]
    if at == 0:
        return -1
    row = (at << LEAF_BITS) + (name & (LEAF - 1))
    return row if cache.nodes[worker.index, row].owners != ABSENT else -1


@compiled
def rows_of(worker: Records, cache: Cache, name: int, count: int) -> tuple[int, int]:
    """The row of `nodes` for a name, -1 where there is none, and how many of `count` names have the rows from it on."""
    within = name & (LEAF - 1)
    at = cache.directory[worker.index, name >> LEAF_BITS]
    return (at << LEAF_BITS) + within if at > 0 else -1, min(count, LEAF - within)


@compiled
def new_leaf(worker: Records, cache: Cache, name: int) -> int:
    """For a name that has no row: the row it has now."""
    index = worker.index
    at = worker.free_leaf
    if at > 0:
        worker.free_leaf = cache.leaves[index, at].next
    else:
        worker.num_leaves += 1
        at = worker.num_leaves
    cache.directory[index, name >> LEAF_BITS] = at
    cache.leaves[index, at].present = 0
    for row in range(at << LEAF_BITS, (at + 1) << LEAF_BITS):
        cache.nodes[index, row].owners = ABSENT
    return int((at << LEAF_BITS) + (name & (LEAF - 1)))


@compiled
def drop(worker: Records, cache: Cache, name: int, row: int) -> None:
    index, at = worker.index, row >> LEAF_BITS
    cache.nodes[index, row].owners = ABSENT
    cache.leaves[index, at].present -= 1
    if cache.leaves[index, at].present == 0:
        cache.directory[index, name >> LEAF_BITS] = 0
        cache.leaves[index, at].next, worker.free_leaf = worker.free_leaf, at
