"""The loop: one event after another, as `placement.simulator.simulate` and its router run them."""

from __future__ import annotations

from typing import Any, NamedTuple

from placement.compiled import compiled_lean as compiled
from placement.simulator.fast import engine, ledger, links, routing
from placement.simulator.fast import handoff_target as target
from placement.simulator.fast import handoffs as ho
from placement.simulator.fast.ahead import Ahead, interrupt
from placement.simulator.fast.board import Board
from placement.simulator.fast.directory import Directory
from placement.simulator.fast.events import Queue, pop, push, push_at
from placement.simulator.fast.records import (
    ABORT,
    ABORT_ACK,
    ABORT_AT,
    ABORT_TO_SOURCE,
    ABORT_TO_TARGET,
    ADD,
    ARRIVE,
    COMMITTED,
    COMPLETE,
    END,
    FIRST_TOKEN,
    FREED,
    FRONT,
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
    SUBMIT_BOTH,
    SUBMIT_TO,
    TURN,
    TURN_AT,
    Records,
    wide,
)
from placement.simulator.fast.steady import Steady
from placement.simulator.fast.store import Cache


class Space(NamedTuple):
    """Arrays that mean nothing between two events, but for the first and the links' transfers under way."""

    batches: Any  # [workers, seats]: whom the step under way computes, but for those that are steady
    scratch: Any
    reserved: Any
    active: Any
    ended: Any


@compiled
def run_events(
    world: Records, workers: Records, requests: Records, seqs: Records, hands: Records, params: Records,
    queue: Queue, commands: Records, flows: Records, busy: Records, space: Space, steady: Steady, ahead: Ahead,
    board: Board, cache: Cache | None, directory: Directory | None,
) -> None:  # fmt: skip
    """From where it stands until nothing is left, or too many miss, or an array is half full (`world.crowded`)."""
    w = world[0]
    batches, scratch, reserved, active, ended = space
    if w.given == 0:
        routing.admit_next(queue, w, requests)
        push_at(queue, w, w.now_s + w.status_s, STATUS_DUE, 0, 0)
    while w.failed == 0 and w.missed <= w.misses and w.crowded + w.unclear + w.forgot == 0:
        kind, a, b = pop(queue, w)
        if kind < 0:
            break
        w.num_events += 1
        if kind == COMPLETE:
            engine.complete(queue, w, workers, cache, commands, requests, seqs, hands, steady, ahead, batches[a], a)
        elif kind in (TURN, TURN_AT):
            engine.turn(
                queue,
                w,
                workers,
                cache,
                commands,
                requests,
                seqs,
                hands,
                steady,
                ahead,
                batches[a],
                scratch,
                reserved,
                params,
                a,
            )
        elif kind == ARRIVE:
            push(queue, w, FRONT, SUBMIT, a, 0)
            routing.admit_next(queue, w, requests)
        elif kind == SUBMIT:
            routing.submit(queue, w, workers, requests, seqs, board, directory, a)
        elif kind == SUBMIT_BOTH:  # three events that are given one after the other, and come so
            w.num_events += 2
            for s in (2 * a + 1, 2 * a):
                routing.submit_to(w, workers, requests, seqs, s)
                ho.put(queue, w, workers, commands, seqs[s].worker, ADD, s)
            ho.begin(queue, w, hands, a, b)
        elif kind == SUBMIT_TO:
            routing.submit_to(w, workers, requests, seqs, a)
            ho.put(queue, w, workers, commands, seqs[a].worker, ADD, a)
        elif kind == FIRST_TOKEN:
            routing.note_cached(directory, requests, seqs, a)
            ledger.settle(workers, seqs, board, a, w.now_s, True)
        elif kind == END:
            routing.finish(queue, w, workers, requests, seqs, board, directory, a)
        elif kind == SETTLE:
            ledger.settle(workers, seqs, board, a, w.now_s, False)
        elif kind == COMMITTED:  # to the router, then to the source
            w.num_events += 1
            if requests[a].running == 1:
                ledger.settle(workers, seqs, board, 2 * a + 1, w.now_s, False)
                requests[a].committed_s = w.now_s
                routing.note_committed(directory, requests[a], a)
            ho.on_commit_told(queue, w, workers, commands, requests, hands, a)
        elif kind == FREED:
            ledger.release(workers, seqs, board, 2 * a)
        elif kind == ABORT_AT:
            if not target.abort_any(queue, w, workers, commands, requests, hands, a // 2, a % 2):
                ho.put(queue, w, workers, commands, seqs[a].worker, ABORT, a)
        elif kind == OFFER:
            target.on_offer(queue, w, hands, a)
        elif kind == READY:
            if target.on_ready(hands, a, b):
                links.move(queue, w, workers, busy, flows, requests[a].prefill, requests[a].decode, a, b)
            ho.settle(w, hands, a)
        elif kind == LAST_WORD:
            target.on_last_word(queue, w, workers, commands, requests, hands, a)
        elif kind == RESERVE:
            ho.on_reserved(queue, w, hands, a)
        elif kind == ABORT_TO_SOURCE:
            ho.abort_source(queue, w, workers, commands, requests, hands, a, False)
        elif kind == ABORT_TO_TARGET:
            target.abort_target(queue, w, workers, commands, requests, hands, a, False)
        elif kind == ABORT_ACK:
            ho.on_abort_ack(queue, w, workers, commands, requests, hands, a)
        elif kind == LINK_START:
            links.start(queue, w, workers, busy, active, flows, a)
        elif kind == LINK_END:
            if b == w.round:
                num_ended = links.finish(queue, w, workers, busy, active, flows, ended)
                for k in range(num_ended):
                    flow = flows[ended[k]]
                    flow.next, w.free_flow = w.free_flow, ended[k]
                    i = wide(flow.request)
                    target.on_received(queue, w, workers, commands, requests, hands, i, flow.blocks)
        elif kind == STATUS_DUE:
            routing.report(queue, w, workers, cache, requests, seqs, steady, ahead)
        elif kind == STATUS:  # an event of each worker, given one after the other
            w.num_events += len(workers) - 1
            ledger.note_statuses(w, workers, seqs, board)
        if w.touched >= 0:
            interrupt(queue, w, workers, cache, requests, seqs, steady, ahead)
