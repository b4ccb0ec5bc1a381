"""The compiled event queue: in order of time, those of one instant in the order given.

Most events come a constant after the one that gives them, a message's way or an engine's pause, so that those of one
delay are given in order: each such delay has a lane, a ring. The heap has only what remains: steps, arrivals, links.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from placement.compiled import compiled_lean as compiled
from placement.simulator.fast.records import NUM_LANES, Records, event


class Queue(NamedTuple):
    """Sizes are powers of 2; nothing is more than half full when an event begins (`World.crowded`)."""

    heap: Any  # of `event`
    lanes: Any  # [NUM_LANES, size] of `event`


def queue_of(size: int) -> Queue:
    """Room for more than `size` events of each kind."""
    size = 1 << (2 * size + 1).bit_length()
    return Queue(np.empty(size, event), np.empty((NUM_LANES, size), event))


def grown(queue: Queue, w: Records) -> Queue:
    """The same events, with twice the room."""
    larger = queue_of(len(queue.heap))
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
    _set(queue.lanes[lane, last & (size - 1)], w, w.now_s + w.delays[lane], kind, a, b)
    w.tail[lane] = last + 1
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


@compiled
def pop(queue: Queue, w: Records) -> tuple[int, int, int]:
    """What comes next: kind -1 for nothing; the clock is set."""
    found, heap, mask = -1, queue.heap, len(queue.heap) - 1
    time_s, given = math.inf, 0
    if w.heap_size > 0:
        found, time_s, given = NUM_LANES, heap[0].time_s, heap[0].given
    for lane in range(NUM_LANES):
        if w.head[lane] < w.tail[lane]:
            first = queue.lanes[lane, w.head[lane] & mask]
            if first.time_s < time_s or (first.time_s == time_s and first.given < given):
                found, time_s, given = lane, first.time_s, first.given
    if found < 0:
        return -1, 0, 0
    w.now_s = time_s
    if found < NUM_LANES:
        at = queue.lanes[found, w.head[found] & mask]
        w.head[found] += 1
        return at.kind, at.a, at.b
    kind, a, b = heap[0].kind, heap[0].a, heap[0].b
    _drop_first(heap, w)
    return kind, a, b
