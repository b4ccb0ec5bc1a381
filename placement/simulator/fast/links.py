"""`placement.simulator.links.Links`, compiled. A transfer is a row of `flows`: request, blocks, bytes left, next."""

from __future__ import annotations

from typing import Any

from numba import njit

from placement.simulator.fast.events import Heap, push
from placement.simulator.fast.records import LINK_END, LINK_START, Records

_DONE_BYTES = 1e-6
Flows = list[Any]


@njit(cache=True)
def move(
    heap: Heap, w: Records, pairs: Records, flows: Flows, left: Flows, pair: int, request: int, count: int
) -> None:
    """`move`: `count` blocks of a request's prompt."""
    flows.append((request, count, -1))
    left.append(max(count * w.block_bytes, _DONE_BYTES))
    flow = len(flows) - 1
    link = pairs[pair]
    if link.head < 0:
        link.head = link.tail = flow
        push(heap, w, w.latency_s, LINK_START, pair, 0)
    else:
        tail = flows[link.tail]
        flows[link.tail] = (tail[0], tail[1], flow)
        link.tail = flow


@njit(cache=True)
def start(heap: Heap, w: Records, workers: Records, pairs: Records, active: Records, left: Flows, pair: int) -> None:
    """`_start`."""
    _advance(w, pairs, active, left)
    active[w.num_active] = pair
    w.num_active += 1
    workers[pair // len(workers)].out_sharing += 1
    workers[pair % len(workers)].in_sharing += 1
    _plan(heap, w, workers, pairs, active, left)


@njit(cache=True)
def _advance(w: Records, pairs: Records, active: Records, left: Flows) -> None:
    passed_s = w.now_s - w.known_s
    w.known_s = w.now_s
    for i in range(w.num_active):
        link = pairs[active[i]]
        left[link.head] -= link.rate * passed_s
        w.moved_bytes += link.rate * passed_s


@njit(cache=True)
def _plan(heap: Heap, w: Records, workers: Records, pairs: Records, active: Records, left: Flows) -> None:
    w.round += 1
    if w.num_active == 0:
        return
    next_s = -1.0
    for i in range(w.num_active):
        pair = active[i]
        sharing = max(workers[pair // len(workers)].out_sharing, workers[pair % len(workers)].in_sharing)
        link = pairs[pair]
        link.rate = w.bytes_per_s / sharing
        ends_s = max(left[link.head], 0.0) / link.rate
        if next_s < 0.0 or ends_s < next_s:
            next_s = ends_s
    push(heap, w, next_s, LINK_END, w.round, 0)


@njit(cache=True)
def finish(
    heap: Heap, w: Records, workers: Records, pairs: Records, active: Records, left: Flows, flows: Flows, ended: Records
) -> int:
    """`_finish` up to the calls of `done`: the flows that ended, in order, are put into `ended`; how many."""
    _advance(w, pairs, active, left)
    least = left[pairs[active[0]].head]
    for i in range(w.num_active):
        least = min(least, left[pairs[active[i]].head])
    limit = max(_DONE_BYTES, least)
    num_ended = kept = 0
    for i in range(w.num_active):
        pair = active[i]
        link = pairs[pair]
        if left[link.head] > limit:
            active[kept] = pair
            kept += 1
            continue
        ended[num_ended] = link.head
        num_ended += 1
        workers[pair // len(workers)].out_sharing -= 1
        workers[pair % len(workers)].in_sharing -= 1
        link.head = flows[link.head][2]
        if link.head >= 0:
            push(heap, w, w.latency_s, LINK_START, pair, 0)
    w.num_active = kept
    _plan(heap, w, workers, pairs, active, left)
    return num_ended
