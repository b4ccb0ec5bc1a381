"""`placement.simulator.links.Links`, compiled: a transfer is a row of `flows`, a link with anything to move of `links`.

Not one for each pair of workers, of which there are a million: those of one worker are walked over.
"""

from __future__ import annotations

from placement.compiled import compiled_inner as compiled
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
    _advance(w, active)
    link, row = links[at], active[w.num_active]
    row.link, row.source, row.target, row.left = at, link.source, link.target, flows[link.head].left
    w.num_active += 1
    if 16 * w.num_active > len(queue.heap):
        w.crowded = 1
    workers[link.source].out_sharing += 1
    workers[link.target].in_sharing += 1
    _share(w, workers, active, link.source, link.target)
    _plan(queue, w, active)


@compiled
def _advance(w: Records, active: Records) -> None:
    passed_s = w.now_s - w.known_s
    w.known_s = w.now_s
    moved = w.moved_bytes
    for i in range(w.num_active):
        active[i].left -= active[i].rate * passed_s
        moved += active[i].rate * passed_s
    w.moved_bytes = moved


@compiled
def _share(w: Records, workers: Records, active: Records, source: int, target: int) -> None:
    """The rates of `_plan` where one more or less is sent by `source` to `target`; the others' stay."""
    for i in range(w.num_active):
        row = active[i]
        if row.source == source or row.target == target:
            row.rate = w.bytes_per_s / max(workers[row.source].out_sharing, workers[row.target].in_sharing)


@compiled
def _plan(queue: Queue, w: Records, active: Records) -> None:
    w.round += 1
    if w.num_active == 0:
        return
    next_s = max(active[0].left, 0.0) / active[0].rate
    for i in range(1, w.num_active):
        next_s = min(next_s, max(active[i].left, 0.0) / active[i].rate)
    push_at(queue, w, w.now_s + next_s, LINK_END, 0, w.round)


@compiled
def finish(
    queue: Queue, w: Records, workers: Records, links: Records, active: Records, flows: Records, ended: Records
) -> int:
    """`_finish` up to the calls of `done`: the flows that ended, in order, are put into `ended`; how many."""
    _advance(w, active)
    least = active[0].left
    for i in range(1, w.num_active):
        least = min(least, active[i].left)
    limit = max(_DONE_BYTES, least)
    num_ended = kept = 0
    for i in range(w.num_active):
        row = active[i]
        if row.left > limit:
            if kept < i:
                active[kept] = row
            kept += 1
            continue
        at, link = row.link, links[row.link]
        ended[num_ended] = at
        num_ended += 1
        workers[link.source].out_sharing -= 1
        workers[link.target].in_sharing -= 1
    w.num_active = kept
    for k in range(num_ended):
        at = ended[k]
        link = links[at]
        _share(w, workers, active, link.source, link.target)
        ended[k] = link.head
        link.head = flows[link.head].next
        if link.head >= 0:
            push(queue, w, LATENCY, LINK_START, at, 0)
        else:
            _forget(w, workers[link.source], links, at)
    _plan(queue, w, active)
    return num_ended
