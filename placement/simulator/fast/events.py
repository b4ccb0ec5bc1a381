"""The compiled event queue: in order of time, those of one instant in the order given.

Most events come a constant after the one that gives them, a message's way or an engine's pause, so that those of one
delay are given in order: each such delay has a lane, a ring. The end of a step is the only one of its worker, and may
be set anew: a tournament over the workers. The heap has only what remains: arrivals, links, statuses.

A `sure` event has the place among those of its instant that the real code gives it. One that is not, of steps taken
ahead (`ahead`), has it unless something else comes at that instant to the last bit: then `world.unclear` is set.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.records import COMPLETE, DUES, HEAP, NUM_LANES, TURN_AT, Records, due, event


class Queue(NamedTuple):
    """Sizes are powers of 2; heap and lanes are at most half full when an event begins (`World.crowded`)."""

    heap: Any  # of `event`
    lanes: Any  # [NUM_LANES, size] of `event`
    dues: Any  # [size] of `due`: of each worker
    first: Any  # [2 * size] workers: the first of this node's two, and from `size` on each itself


def queue_of(size: int, num_workers: int) -> Queue:
    """Room for more than `size` events of each kind."""
    size = 1 << (2 * size + 1).bit_length()
    leaves = 1 << num_workers.bit_length()
    dues = np.zeros(leaves, due)
    dues["time_s"] = np.inf
    first = np.concatenate((np.zeros(leaves, np.int64), np.arange(leaves)))
    for node in range(leaves - 1, 0, -1):
        first[node] = first[2 * node]
    return Queue(np.empty(size, event), np.empty((NUM_LANES, size), event), dues, first)


def grown(queue: Queue, w: Records) -> Queue:
    """The same events, with twice the room."""
    larger = queue_of(len(queue.heap), 1)._replace(dues=queue.dues, first=queue.first)
    larger.heap[: len(queue.heap)] = queue.heap
    for lane in range(NUM_LANES):
        rows = np.arange(w["head"][lane], w["tail"][lane])
        larger.lanes[lane, : len(rows)] = queue.lanes[lane, rows % len(queue.heap)]
    w["tail"] -= w["head"]
    w["head"] = 0
    return larger


@compiled
def _set(at: Records, w: Records, time_s: float, kind: int, a: int, b: int) -> None:
    w.given += 1
    at.time_s, at.given, at.kind, at.a, at.b = max(time_s, w.now_s), w.given, kind, a, b


@compiled
def push(queue: Queue, w: Records, lane: int, kind: int, a: int, b: int) -> None:
    """`EventQueue.after`, a lane's delay later."""
    last, size = w.tail[lane], len(queue.heap)
    at = queue.lanes[lane, last & (size - 1)]
    _set(at, w, w.now_s + w.delays[lane], kind, a, b)
    w.tail[lane] = last + 1
    if last == w.head[lane]:
        w.soonest_s[lane] = at.time_s
    if 2 * (last - w.head[lane]) > size:
        w.crowded = 1


@compiled
def push_at(queue: Queue, w: Records, time_s: float, kind: int, a: int, b: int) -> None:
    """`EventQueue.at`."""
    heap = queue.heap
    row = w.heap_size
    w.heap_size += 1
    time_s = max(time_s, w.now_s)
    while row > 0 and heap[(row - 1) >> 1].time_s > time_s:  # of one instant, the new one is the last
        heap[row] = heap[(row - 1) >> 1]
        row = (row - 1) >> 1
    _set(heap[row], w, time_s, kind, a, b)
    w.soonest_s[HEAP] = heap[0].time_s
    if 2 * w.heap_size > len(heap):
        w.crowded = 1


@compiled
def _before(a: Records, b: Records) -> bool:
    return bool(a.time_s < b.time_s or (a.time_s == b.time_s and a.given < b.given))


@compiled
def _drop_first(heap: Records, w: Records) -> None:
    w.heap_size -= 1
    num, row, child = w.heap_size, 0, 1
    while child < num:
        if child + 1 < num and _before(heap[child + 1], heap[child]):
            child += 1
        if not _before(heap[child], heap[num]):
            break
        heap[row] = heap[child]
        row, child = child, 2 * child + 1
    heap[row] = heap[num]
    w.soonest_s[HEAP] = heap[0].time_s if num > 0 else math.inf


@compiled
def _sooner(dues: Records, a: int, b: int) -> bool:
    if dues[a].time_s != dues[b].time_s:
        return bool(dues[a].time_s < dues[b].time_s)
    return bool(dues[a].given < dues[b].given)


@compiled
def set_due(queue: Queue, w: Records, worker: int, time_s: float, sure: int) -> None:
    """The end of a worker's step: its first, or sooner than it was."""
    dues, first = queue.dues, queue.first
    w.given += 1
    dues[worker].time_s, dues[worker].given, dues[worker].sure = max(time_s, w.now_s), w.given, sure
    node = (len(dues) + worker) >> 1
    while node > 0 and (first[node] == worker or _sooner(dues, worker, first[node])):
        first[node] = worker
        node >>= 1
    w.soonest_s[DUES] = dues[first[1]].time_s


@compiled
def drop_due(queue: Queue, w: Records, worker: int) -> None:
    """None any more."""
    dues, first = queue.dues, queue.first
    dues[worker].time_s = math.inf
    node = len(dues) + worker
    best = worker
    while node > 1:
        other = first[node ^ 1]
        if _sooner(dues, other, best):
            best = other
        node >>= 1
        first[node] = best
    w.soonest_s[DUES] = dues[best].time_s


@compiled
def _first_given(queue: Queue, w: Records) -> int:
    """Where the first given is of those that come at this instant."""
    found, given = -1, 0
    for at in range(DUES + 1):
        if w.soonest_s[at] != w.now_s:
            continue
        if at < HEAP:
            its_given = queue.lanes[at, w.head[at] & (len(queue.heap) - 1)].given
        else:
            its_given = queue.heap[0].given if at == HEAP else queue.dues[queue.first[1]].given
        if found < 0 or its_given < given:
            found, given = at, its_given
    return found


@compiled
def _tell_tie(w: Records, before_s: float) -> None:
    """What was just taken was not sure: is it alone at its instant?"""
    tie = before_s == w.now_s
    for at in range(DUES + 1):
        tie = tie or w.soonest_s[at] == w.now_s
    if tie:
        w.unclear = 1


@compiled
def pop(queue: Queue, w: Records) -> tuple[int, int, int]:
    """What comes next: kind -1 for nothing; the clock is set."""
    before_s, found, num = w.now_s, 0, 0
    time_s = w.soonest_s[0]
    for at in range(1, DUES + 1):  # no branches: which it is cannot be foreseen
        found = at if w.soonest_s[at] < time_s else found
        time_s = min(time_s, w.soonest_s[at])
    if time_s == math.inf:
        return -1, 0, 0
    w.now_s = time_s
    for at in range(DUES + 1):
        num += 1 if w.soonest_s[at] == time_s else 0
    if num > 1:
        found = _first_given(queue, w)
    if found < HEAP:
        mask = len(queue.heap) - 1
        event = queue.lanes[found, w.head[found] & mask]
        w.head[found] += 1
        following = queue.lanes[found, w.head[found] & mask].time_s
        w.soonest_s[found] = following if w.head[found] < w.tail[found] else math.inf
        return event.kind, event.a, event.b
    if found == HEAP:
        kind, a, b = queue.heap[0].kind, queue.heap[0].a, queue.heap[0].b
        _drop_first(queue.heap, w)
        if kind == TURN_AT:
            _tell_tie(w, before_s)
        return kind, a, b
    worker = queue.first[1]
    drop_due(queue, w, worker)
    if queue.dues[worker].sure == 0:
        _tell_tie(w, before_s)
    return COMPLETE, worker, 0
