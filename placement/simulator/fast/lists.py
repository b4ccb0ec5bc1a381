"""Ordered sets of sequences: those waiting, running and reserved of each worker, linked through the records."""

from __future__ import annotations

from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.records import Records, numbers, wide

IN_WAITING, IN_RUNNING, IN_RESERVED = numbers(3)


@compiled
def _link(worker: Records, seqs: Records, s: int, before: int, after: int, which: int) -> None:
    """Between these two neighbours; negative: it is the first, or the last."""
    seqs[s].prev, seqs[s].next = before, after
    if before < 0:
        worker.head[which] = s
    else:
        seqs[before].next = s
    if after < 0:
        worker.tail[which] = s
    else:
        seqs[after].prev = s
    worker.count[which] += 1


@compiled
def append(worker: Records, seqs: Records, s: int, which: int) -> None:
    """At the end."""
    _link(worker, seqs, s, wide(worker.tail[which]), wide(-1), which)


@compiled
def remove(worker: Records, seqs: Records, s: int, which: int) -> None:
    """From wherever it is."""
    before, after = seqs[s].prev, seqs[s].next
    if before < 0:
        worker.head[which] = after
    else:
        seqs[before].next = after
    if after < 0:
        worker.tail[which] = before
    else:
        seqs[after].prev = before
    worker.count[which] -= 1


@compiled
def earlier(seqs: Records, a: int, b: int) -> bool:
    """Whether `a` has the smaller rank: `Sequence.rank`, all of one priority."""
    if seqs[a].arrival_s != seqs[b].arrival_s:
        return bool(seqs[a].arrival_s < seqs[b].arrival_s)
    return bool(seqs[a].order < seqs[b].order)


@compiled
def insert_waiting(worker: Records, seqs: Records, s: int) -> None:
    """`WaitingQueue.push`: by rank. New ones belong to the end, preempted ones to the front."""
    after, tail = wide(worker.head[IN_WAITING]), wide(worker.tail[IN_WAITING])
    if tail < 0 or earlier(seqs, tail, s):
        append(worker, seqs, s, IN_WAITING)
        return
    while earlier(seqs, after, s):
        after = wide(seqs[after].next)
    _link(worker, seqs, s, wide(seqs[after].prev), after, IN_WAITING)


@compiled
def insert_running(worker: Records, seqs: Records, s: int) -> None:
    """Back where it was: those running are in the order in which they began."""
    before, after = worker.tail[IN_RUNNING], -1
    while before >= 0 and seqs[before].place > seqs[s].place:
        before, after = seqs[before].prev, before
    _link(worker, seqs, s, before, after, IN_RUNNING)
