"""The loop: one event after another, as `placement.simulator.simulate` and its router run them."""

from __future__ import annotations

import heapq

import numpy as np
from numba import njit

from placement.simulator.fast import engine, ledger, links, routing
from placement.simulator.fast import handoffs as ho
from placement.simulator.fast.events import push
from placement.simulator.fast.records import (
    ABORT,
    ABORT_ACK,
    ABORT_AT,
    ABORT_TO_SOURCE,
    ABORT_TO_TARGET,
    ADD,
    ARRIVE,
    BEGIN,
    COMMIT_TOLD,
    COMMITTED,
    COMPLETE,
    END,
    FIRST_TOKEN,
    FREED,
    LAST_WORD,
    LINK_END,
    LINK_START,
    OFFER,
    READY,
    RESERVE,
    SETTLE,
    STATUS,
    STATUS_DUE,
    SUBMIT,
    SUBMIT_TO,
    TURN,
    Records,
)


@njit(cache=True)
def run_events(
    world: Records, workers: Records, requests: Records, seqs: Records, hands: Records, pairs: Records, batches: Records
) -> None:
    """From the first arrival until nothing is left, or too many miss."""
    w = world[0]
    heap = [(0.0, 0, 0, 0, 0)]
    heap.pop()
    commands = [(0, 0, 0)]
    commands.pop()
    flows = [(0, 0, 0)]
    flows.pop()
    left = [0.0]
    left.pop()
    active = np.empty(len(pairs) + 1, np.int64)
    ended = np.empty(len(pairs) + 1, np.int64)
    chosen = np.empty(len(workers), np.int64)
    scratch = np.empty(4 * batches.shape[1] + 16, np.int64)
    reserved = np.empty(batches.shape[1] + 1, np.int64)
    routing.admit_next(heap, w, requests)
    push(heap, w, w.status_s, STATUS_DUE, 0, 0)
    while len(heap) > 0 and w.failed == 0 and w.missed <= w.misses:
        time_s, _, kind, a, b = heapq.heappop(heap)
        w.now_s = time_s
        w.num_events += 1
        if kind == COMPLETE:
            engine.complete(heap, w, workers, commands, requests, seqs, hands, batches[a], a)
        elif kind == TURN:
            engine.turn(heap, w, workers, commands, seqs, hands, batches[a], scratch, reserved, a)
        elif kind == ARRIVE:
            push(heap, w, w.front_s, SUBMIT, a, 0)
            routing.admit_next(heap, w, requests)
        elif kind == SUBMIT:
            routing.submit(heap, w, workers, requests, seqs, chosen, a)
        elif kind == SUBMIT_TO:
            routing.submit_to(w, workers, requests, seqs, a)
            ho.put(heap, w, workers, commands, seqs[a].worker, ADD, a)
        elif kind == BEGIN:
            ho.begin(heap, w, hands, a, b)
        elif kind == FIRST_TOKEN:
            ledger.settle(workers, seqs, a, w.now_s, True)
        elif kind == END:
            routing.finish(heap, w, workers, requests, seqs, a)
        elif kind == SETTLE:
            ledger.settle(workers, seqs, a, w.now_s, False)
        elif kind == COMMITTED:
            if requests[a].running == 1:
                ledger.settle(workers, seqs, 2 * a + 1, w.now_s, False)
                requests[a].committed_s = w.now_s
        elif kind == FREED:
            ledger.release(workers, seqs, 2 * a)
        elif kind == ABORT_AT:
            if not ho.abort_any(heap, w, workers, commands, requests, hands, a // 2, a % 2):
                ho.put(heap, w, workers, commands, seqs[a].worker, ABORT, a)
        elif kind == OFFER:
            ho.on_offer(heap, w, hands, a)
        elif kind == READY:
            if ho.on_ready(hands, a, b):
                pair = requests[a].prefill * len(workers) + requests[a].decode
                links.move(heap, w, pairs, flows, left, pair, a, b)
            ho._settle(w, hands, a)
        elif kind == LAST_WORD:
            ho.on_last_word(heap, w, workers, commands, requests, hands, a)
        elif kind == RESERVE:
            ho.on_reserved(heap, w, hands, a)
        elif kind == COMMIT_TOLD:
            ho.on_commit_told(heap, w, workers, commands, requests, hands, a)
        elif kind == ABORT_TO_SOURCE:
            ho.abort_source(heap, w, workers, commands, requests, hands, a, False)
        elif kind == ABORT_TO_TARGET:
            ho.abort_target(heap, w, workers, commands, requests, hands, a, False)
        elif kind == ABORT_ACK:
            ho.on_abort_ack(heap, w, workers, commands, requests, hands, a)
        elif kind == LINK_START:
            links.start(heap, w, workers, pairs, active, left, a)
        elif kind == LINK_END:
            if a == w.round:
                num_ended = links.finish(heap, w, workers, pairs, active, left, flows, ended)
                for i in range(num_ended):
                    flow = flows[ended[i]]
                    ho.on_received(heap, w, workers, commands, requests, hands, flow[0], flow[1])
        elif kind == STATUS_DUE:
            routing.report(heap, w, workers, requests, seqs)
        elif kind == STATUS:
            ledger.note_status(workers[a], seqs, w.now_s)
