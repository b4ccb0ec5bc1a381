"""`placement.simulator.links.Links`, compiled. A transfer is a row of `flows`: request, blocks, bytes left, next."""

from __future__ import annotations

from placement.compiled import compiled_lean as compiled
from placement.simulator.fast.events import Queue, push, push_at
from placement.simulator.fast.records import LATENCY, LINK_END, LINK_START, Records

_DONE_BYTES = 1e-6


@compiled
def move(queue: Queue, w: Records, pairs: Records, flows: Records, pair: int, request: int, count: int) -> None:
    """`move`: `count` blocks of a request's prompt."""
    flow = w.free_flow
    if flow >= 0:
        w.free_flow = flows[flow].next
    else:
        flow = w.num_flows
        w.num_flows += 1
        if 2 * flow > len(flows):
            w.crowded = 1
    row = flows[flow]
    row.request, row.blocks, row.next, row.left = request, count, -1, max(count * w.block_bytes, _DONE_BYTES)
    link = pairs[pair]
    if link.head < 0:
        link.head = link.tail = flow
        push(queue, w, LATENCY, LINK_START, pair, 0)
    else:
        flows[link.tail].next = flow
        link.tail = flow


@compiled
def start(
    queue: Queue, w: Records, workers: Records, pairs: Records, active: Records, flows: Records, pair: int
) -> None:
    """`_start`."""
    _advance(w, pairs, active, flows)
    active[w.num_active] = pair
    w.num_active += 1
    if 16 * w.num_active > len(queue.heap):
        w.crowded = 1
    workers[pair // len(workers)].out_sharing += 1
    workers[pair % len(workers)].in_sharing += 1
    _plan(queue, w, workers, pairs, active, flows)


@compiled
def _advance(w: Records, pairs: Records, active: Records, flows: Records) -> None:
    passed_s = w.now_s - w.known_s
    w.known_s = w.now_s
    for i in range(w.num_active):
        link = pairs[active[i]]
        flows[link.head].left -= link.rate * passed_s
        w.moved_bytes += link.rate * passed_s


@compiled
def _plan(queue: Queue, w: Records, workers: Records, pairs: Records, active: Records, flows: Records) -> None:
    w.round += 1
    if w.num_active == 0:
        return
    next_s = -1.0
    for i in range(w.num_active):
        pair = active[i]
        sharing = max(workers[pair // len(workers)].out_sharing, workers[pair % len(workers)].in_sharing)
        link = pairs[pair]
        link.rate = w.bytes_per_s / sharing
        ends_s = max(flows[link.head].left, 0.0) / link.rate
        if next_s < 0.0 or ends_s < next_s:
            next_s = ends_s
    push_at(queue, w, w.now_s + next_s, LINK_END, w.round, 0)


@compiled
def finish(
    queue: Queue, w: Records, workers: Records, pairs: Records, active: Records, flows: Records, ended: Records
) -> int:
    """`_finish` up to the calls of `done`: the flows that ended, in order, are put into `ended`; how many."""
    _advance(w, pairs, active, flows)
    least = flows[pairs[active[0]].head].left
    for i in range(w.num_active):
        least = min(least, flows[pairs[active[i]].head].left)
    limit = max(_DONE_BYTES, least)
    num_ended = kept = 0
    for i in range(w.num_active):
        pair = active[i]
        link = pairs[pair]
        if flows[link.head].left > limit:
            active[kept] = pair
            kept += 1
            continue
        ended[num_ended] = link.head
        num_ended += 1
        workers[pair // len(workers)].out_sharing -= 1
        workers[pair % len(workers)].in_sharing -= 1
        link.head = flows[link.head].next
        if link.head >= 0:
            push(queue, w, LATENCY, LINK_START, pair, 0)
    w.num_active = kept
    _plan(queue, w, workers, pairs, active, flows)
    return num_ended
