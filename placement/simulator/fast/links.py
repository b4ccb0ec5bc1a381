"""`placement.simulator.links.Links`, compiled: a transfer is a row of `flows`, a link with anything to move of `links`.

Not one for each pair of workers, of which there are a million: those of one worker are walked over.
"""

from __future__ import annotations

from placement.compiled import compiled_lean as compiled
from placement.simulator.fast.events import Queue, push, push_at
from placement.simulator.fast.records import LATENCY, LINK_END, LINK_START, Records

_DONE_BYTES = 1e-6


@compiled
def _find(w: Records, worker: Records, links: Records, source: int, target: int) -> int:
    """The link from `worker`, which is `source`; a new one is without a head."""
    at = worker.links
    while at >= 0 and links[at].target != target:
        at = links[at].next
    if at >= 0:
        return int(at)
    at = w.free_link
    if at >= 0:
        w.free_link = links[at].next
    else:
        at = w.num_links
        w.num_links += 1
        if 2 * at > len(links):
            w.crowded = 1
    link = links[at]
    link.source, link.target, link.head, link.tail, link.next = source, target, -1, -1, worker.links
    worker.links = at
    return int(at)


@compiled
def _forget(w: Records, worker: Records, links: Records, at: int) -> None:
    if worker.links == at:
        worker.links = links[at].next
    else:
        before = worker.links
        while links[before].next != at:
            before = links[before].next
        links[before].next = links[at].next
    links[at].next, w.free_link = w.free_link, at


@compiled
def move(
    queue: Queue, w: Records, workers: Records, links: Records, flows: Records, source: int, target: int, request: int,
    count: int,
) -> None:  # fmt: skip
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
    at = _find(w, workers[source], links, source, target)
    link = links[at]
    if link.head < 0:
        link.head = link.tail = flow
        push(queue, w, LATENCY, LINK_START, at, 0)
    else:
        flows[link.tail].next = flow
        link.tail = flow


@compiled
def start(queue: Queue, w: Records, workers: Records, links: Records, active: Records, flows: Records, at: int) -> None:
    """`_start`."""
    _advance(w, links, active)
    active[w.num_active] = at
    w.num_active += 1
    if 16 * w.num_active > len(queue.heap):
        w.crowded = 1
    link = links[at]
    link.left = flows[link.head].left
    workers[link.source].out_sharing += 1
    workers[link.target].in_sharing += 1
    _plan(queue, w, workers, links, active)


@compiled
def _advance(w: Records, links: Records, active: Records) -> None:
    passed_s = w.now_s - w.known_s
    w.known_s = w.now_s
    moved = w.moved_bytes
    for i in range(w.num_active):
        link = links[active[i]]
        link.left -= link.rate * passed_s
        moved += link.rate * passed_s
    w.moved_bytes = moved


@compiled
def _plan(queue: Queue, w: Records, workers: Records, links: Records, active: Records) -> None:
    w.round += 1
    if w.num_active == 0:
        return
    next_s = -1.0
    for i in range(w.num_active):
        link = links[active[i]]
        link.rate = w.bytes_per_s / max(workers[link.source].out_sharing, workers[link.target].in_sharing)
        ends_s = max(link.left, 0.0) / link.rate
        if next_s < 0.0 or ends_s < next_s:
            next_s = ends_s
    push_at(queue, w, w.now_s + next_s, LINK_END, 0, w.round)


@compiled
def finish(
    queue: Queue, w: Records, workers: Records, links: Records, active: Records, flows: Records, ended: Records
) -> int:
    """`_finish` up to the calls of `done`: the flows that ended, in order, are put into `ended`; how many."""
    _advance(w, links, active)
    least = links[active[0]].left
    for i in range(w.num_active):
        least = min(least, links[active[i]].left)
    limit = max(_DONE_BYTES, least)
    num_ended = kept = 0
    for i in range(w.num_active):
        at = active[i]
        link = links[at]
        if link.left > limit:
            active[kept] = at
            kept += 1
            continue
        ended[num_ended] = link.head
        num_ended += 1
        workers[link.source].out_sharing -= 1
        workers[link.target].in_sharing -= 1
        link.head = flows[link.head].next
        if link.head >= 0:
            push(queue, w, LATENCY, LINK_START, at, 0)
        else:
            _forget(w, workers[link.source], links, at)
    w.num_active = kept
    _plan(queue, w, workers, links, active)
    return num_ended
