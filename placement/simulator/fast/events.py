"""The compiled event queue: in order of time, those of one instant in the order given.

Most events come a constant after the one that gives them, a message's way or an engine's pause, so that those of one
delay are given in order: each such delay has a lane, a ring no wider than was ever needed, so that it stays in the
nearest cache. The end of a step is the only one of its worker, and may be set anew: a tree over the workers. The heap
has only what remains: arrivals, links, statuses.

A `sure` event has the place among those of its instant that the real code gives it. One that is not, of steps taken
ahead (`ahead`), has it unless something else comes at that instant to the last bit: then `world.unclear` is set.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from placement.compiled import compiled_apart
from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.records import COMPLETE, DUES, HEAP, NUM_LANES, TURN_AT, Records, due, event

NARROW = 16  # of a lane, at first


class Queue(NamedTuple):
    """Sizes are powers of 2; heap and lanes are at most half full when an event begins (`World.crowded`)."""

    heap: Any  # of `event`
    lanes: Any  # [NUM_LANES, size] of `event`: rings of `World.mask` + 1
    dues: Any  # [leaves] of `due`: of each worker
    due_s: Any  # [2 * leaves] the sooner of this node's two, and from `leaves` on of each worker; inf for none


def queue_of(size: int, num_workers: int) -> Queue:
    """Room for more than `size` events of each kind."""
    size = 1 << (2 * size + 1).bit_length()
    leaves = 1 << num_workers.bit_length()
    lanes = np.empty((NUM_LANES, size), event)
    return Queue(np.empty(size, event), lanes, np.zeros(leaves, due), np.full(2 * leaves, np.inf))


def grown(queue: Queue, w: Records) -> Queue:
    """The same events, with twice the room."""
    larger = queue_of(len(queue.heap), 1)._replace(dues=queue.dues, due_s=queue.due_s)
    larger.heap[: len(queue.heap)] = queue.heap
    for lane in range(NUM_LANES):
        rows = np.arange(w["head"][lane], w["tail"][lane])
        larger.lanes[lane, : len(rows)] = queue.lanes[lane, rows & w["mask"][lane]]
    w["tail"] -= w["head"]
    w["head"], w["mask"] = 0, len(larger.heap) - 1
    return larger


@compiled
def _set(at: Records, w: Records, time_s: float, kind: int, a: int, b: int) -> None:
    w.given += 1
    at.time_s, at.given, at.kind, at.a, at.b = max(time_s, w.now_s), w.given, kind, a, b


@compiled_apart
def _widen(queue: Queue, w: Records, lane: int) -> None:
    """Twice the ring: whatever is not in its place there belongs to the new half."""
    ring, mask = queue.lanes[lane], w.mask[lane]
    for row in range(w.head[lane], w.tail[lane]):
        ring[row & (2 * mask + 1)] = ring[row & mask]
    w.mask[lane] = 2 * mask + 1


@compiled
def push(queue: Queue, w: Records, lane: int, kind: int, a: int, b: int) -> None:
    """`EventQueue.after`, a lane's delay later."""
    last = w.tail[lane]
    if last - w.head[lane] > w.mask[lane]:
        _widen(queue, w, lane)
    at = queue.lanes[lane, last & w.mask[lane]]
    _set(at, w, w.now_s + w.delays[lane], kind, a, b)
    w.tail[lane] = last + 1
    if last == w.head[lane]:
        w.soonest_s[lane] = at.time_s
    if 2 * (last - w.head[lane]) > len(queue.heap):
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
def set_due(queue: Queue, w: Records, worker: int, time_s: float, sure: int) -> None:
    """The end of a worker's step: its first, or sooner than it was."""
    dues, due_s = queue.dues, queue.due_s
    w.given += 1
    dues[worker].given, dues[worker].sure = w.given, sure
    time_s, node = max(time_s, w.now_s), len(dues) + worker
    while node > 0 and time_s < due_s[node]:
        due_s[node] = time_s
        node >>= 1
    w.soonest_s[DUES] = due_s[1]


@compiled
def drop_due(queue: Queue, w: Records, worker: int) -> None:
    """None any more."""
    due_s, node, time_s = queue.due_s, len(queue.dues) + worker, math.inf
    due_s[node] = time_s
    while node > 1:
        time_s = min(time_s, due_s[node ^ 1])
        node >>= 1
        due_s[node] = time_s
    w.soonest_s[DUES] = time_s


@compiled
def _first_due(queue: Queue) -> int:
    """Whose step ends first."""
    dues, due_s, node, tie = queue.dues, queue.due_s, 1, False
    while node < len(dues):
        one_s, other_s = due_s[2 * node], due_s[2 * node + 1]
        tie = tie or one_s == other_s
        node = 2 * node + (1 if other_s < one_s else 0)
    first = node - len(dues)
    if tie:
        for worker in range(len(dues)):
            if due_s[len(dues) + worker] == due_s[1] and dues[worker].given < dues[first].given:
                first = worker
    return first


@compiled_apart
def _first_given(queue: Queue, w: Records) -> int:
    """Where the first given is of those that come at this instant."""
    found, given = -1, 0
    for at in range(DUES + 1):
        if w.soonest_s[at] != w.now_s:
            continue
        if at < HEAP:
            its_given = queue.lanes[at, w.head[at] & w.mask[at]].given
        else:
            its_given = queue.heap[0].given if at == HEAP else queue.dues[_first_due(queue)].given
        if found < 0 or its_given < given:
            found, given = at, its_given
    return found


@compiled_apart
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
        mask = w.mask[found]
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
    worker = _first_due(queue)
    drop_due(queue, w, worker)
    if queue.dues[worker].sure == 0:
        _tell_tie(w, before_s)
    return COMPLETE, worker, 0
