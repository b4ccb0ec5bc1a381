"""Blocks that nobody owns and that are kept: runs, in the order in which they were let go of.

A run is a note that was true then: who takes a block from it, or lets go of it once more, leaves the run as it is. What
of it is still true the stamps tell.
"""

from __future__ import annotations

from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.records import Records
from placement.simulator.fast.store import Cache, drop, find


@compiled
def keep_run(worker: Records, cache: Cache, name: int, count: int, stamp: int) -> None:
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
def _kept(worker: Records, cache: Cache, name: int, stamp: int) -> int:
    """The row of a name, there or reserved, that nobody has owned since this stamp; -1: it is no longer so."""
    row = find(worker, cache, name)
    if row < 0:
        return -1
    node = cache.nodes[worker.index, row]
    return int(row) if node.owners <= 0 and node.stamp == stamp else -1


@compiled
def _forget_old(worker: Records, cache: Cache) -> None:
    """Runs of which nothing is left go: as many as there are blocks remain, at most."""
    index, before, at = worker.index, -1, worker.run_head
    while at >= 0:
        run = cache.idle[index, at]
        following, left = run.next, False
        for one in range(run.node, run.node + run.count):
            if _kept(worker, cache, one, run.stamp) >= 0:
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


@compiled
def evict(worker: Records, cache: Cache, most: int) -> None:
    """What was let go of first, until no more than `most` blocks without an owner are kept."""
    index = worker.index
    while worker.idle > most:
        run = cache.idle[index, worker.run_head]
        while run.count > 0 and worker.idle > most:
            run.count -= 1
            row = _kept(worker, cache, run.node + run.count, run.stamp)
            if row >= 0:
                drop(worker, cache, run.node + run.count, row)
                worker.idle -= 1
        if run.count == 0:
            at = worker.run_head
            worker.run_head = run.next
            if run.next < 0:
                worker.run_tail = -1
            _free_run(worker, cache, at)
