"""The loop: one event after another, as `placement.simulator.simulate` and its router run them."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numba import njit

from placement.simulator.fast import handoffs as ho
from placement.simulator.fast import ledger, links
from placement.simulator.fast.estimator import coefficients, observe
from placement.simulator.fast.events import Heap, push, push_at
from placement.simulator.fast.lists import insert_waiting
from placement.simulator.fast.records import (
    ABORT,
    ABORT_ACK,
    ABORT_AT,
    ABORT_TO_SOURCE,
    ABORT_TO_TARGET,
    ADD,
    ARRIVE,
    BEGIN,
    COMMIT,
    COMMIT_TOLD,
    COMMITTED,
    COMPLETE,
    DECODE,
    END,
    FIRST_TOKEN,
    FREED,
    FULL,
    LAST_WORD,
    LINK_END,
    LINK_START,
    NEVER,
    OFFER,
    PREFILL,
    QUARANTINE,
    READY,
    RESERVE,
    SETTLE,
    STATUS,
    STATUS_DUE,
    SUBMIT,
    SUBMIT_TO,
    TURN,
    WAITING,
    Records,
)
from placement.simulator.fast.scheduler import (
    abort,
    blocks_for,
    commit,
    enter,
    form,
    promised_blocks,
    quarantine,
    uncomputed_tokens,
)
from placement.simulator.fast.steps import batch_s

_FINISHED, _REJECTED = 1, 2  # placement.simulator.requests.Outcome


@njit(cache=True)
def run_events(
    world: Records, workers: Records, requests: Records, seqs: Records, hands: Records, pairs: Records, batches: Records
) -> None:
    """From the first arrival until nothing is left."""
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
    _admit_next(heap, w, requests)
    push(heap, w, w.status_s, STATUS_DUE, 0, 0)
    while len(heap) > 0 and w.failed == 0:
        time_s, _, kind, a, b = heapq.heappop(heap)
        w.now_s = time_s
        w.num_events += 1
        if kind == COMPLETE:
            _complete(heap, w, workers, commands, requests, seqs, hands, batches[a], a)
        elif kind == TURN:
            _turn(heap, w, workers, commands, seqs, hands, batches[a], scratch, reserved, a)
        elif kind == ARRIVE:
            push(heap, w, w.front_s, SUBMIT, a, 0)
            _admit_next(heap, w, requests)
        elif kind == SUBMIT:
            _submit(heap, w, workers, requests, seqs, chosen, a)
        elif kind == SUBMIT_TO:
            _submit_to(w, requests, seqs, a)
            ho.put(heap, w, workers, commands, seqs[a].worker, ADD, a)
        elif kind == BEGIN:
            ho.begin(heap, w, hands, a, b)
        elif kind == FIRST_TOKEN:
            ledger.settle(workers, seqs, a, w.now_s, True)
        elif kind == END:
            _finish(heap, w, workers, requests, seqs, a)
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
            _report(heap, w, workers, requests, seqs)
        elif kind == STATUS:
            ledger.note_status(workers[a], seqs, w.now_s)


@njit(cache=True)
def _admit_next(heap: Heap, w: Records, requests: Records) -> None:
    if w.next < len(requests):
        push_at(heap, w, requests[w.next].arrival_s, ARRIVE, w.next, 0)
        w.next += 1


@njit(cache=True)
def _report(heap: Heap, w: Records, workers: Records, requests: Records, seqs: Records) -> None:
    """`SimRouter.report_statuses`, and the next one."""
    for index in range(len(workers)):
        worker = workers[index]
        worker.sent_free = worker.free
        worker.sent_promised = promised_blocks(worker, seqs)
        worker.sent_uncomputed = uncomputed_tokens(worker, seqs)
        coefficients(worker, worker.sent_coefficients)
        push(heap, w, w.message_s, STATUS, index, 0)
    if w.next < len(requests) or w.running > 0 or w.handoffs > 0:
        push(heap, w, w.status_s, STATUS_DUE, 0, 0)


# ---- the router ----


@njit(cache=True)
def _submit(
    heap: Heap, w: Records, workers: Records, requests: Records, seqs: Records, chosen: Records, i: int
) -> None:
    """`SimRouter.submit`."""
    request = requests[i]
    if w.running >= w.max_in_flight:
        request.outcome = _REJECTED
        return
    prompt, output = request.prompt, request.output
    prefill, decode = ledger.choose(w, workers, seqs, prompt, output, chosen)
    request.prefill, request.decode = prefill, decode
    request.running = 1
    w.running += 1
    room = blocks_for(workers[decode], prompt + min(output, w.growth))
    ledger.hold(workers, seqs, 2 * i + 1, decode, w.now_s, prompt if prefill < 0 else 0, room)
    seqs[2 * i + 1].mode = FULL if prefill < 0 else DECODE
    push(heap, w, w.message_s, SUBMIT_TO, 2 * i + 1, 0)
    if prefill >= 0:
        blocks = blocks_for(workers[prefill], prompt)
        ledger.hold(workers, seqs, 2 * i, prefill, w.now_s, prompt, blocks)
        seqs[2 * i].mode = PREFILL
        push(heap, w, w.message_s, SUBMIT_TO, 2 * i, 0)
        push(heap, w, w.message_s, BEGIN, i, blocks)


@njit(cache=True)
def _submit_to(w: Records, requests: Records, seqs: Records, s: int) -> None:
    """`SimRouter._submit_to`."""
    seq, request = seqs[s], requests[s // 2]
    seq.arrival_s = w.now_s
    seq.tokens = seq.given = request.prompt
    seq.most = request.prompt + request.output
    seq.first_step_s = seq.committed_s = NEVER


@njit(cache=True)
def _finish(heap: Heap, w: Records, workers: Records, requests: Records, seqs: Records, s: int) -> None:
    """`SimRouter._finish` and `_end`."""
    i = s // 2
    request = requests[i]
    ledger.release(workers, seqs, s)
    request.outcome = _FINISHED
    request.running = 0
    w.running -= 1
    if request.prefill >= 0 and request.committed_s < 0.0 and ledger.release(workers, seqs, 2 * i):
        push(heap, w, w.message_s, ABORT_AT, 2 * i, 0)
    if ledger.release(workers, seqs, 2 * i + 1):
        push(heap, w, w.message_s, ABORT_AT, 2 * i + 1, 0)


# ---- an engine ----


@njit(cache=True)
def _turn(
    heap: Heap, w: Records, workers: Records, commands: ho.Commands, seqs: Records, hands: Records, batch: Records,
    scratch: Records, reserved: Records, index: int,
) -> None:  # fmt: skip
    """`SimWorker._turn`."""
    worker = workers[index]
    worker.woken = 0
    if worker.stepping == 1:
        return
    while worker.command_head >= 0:
        kind, s, following = commands[worker.command_head]
        worker.command_head = following
        if kind == ADD:
            _add(w, worker, seqs, s)
        elif kind == COMMIT:
            commit(worker, seqs, s, w.now_s)
        elif kind == QUARANTINE:
            quarantine(worker, seqs, s)
        else:
            abort(worker, seqs, s)
    num_decodes, n, num_reserved = form(worker, seqs, w.now_s, scratch, reserved)
    for k in range(num_reserved):
        ho.on_room(heap, w, hands, reserved[k] // 2)
        push(heap, w, w.message_s, SETTLE, reserved[k], 0)
    if n == 0:
        return
    worker.stepping, worker.batch, worker.decodes = 1, n, num_decodes
    tokens = context = pairs = 0
    for k in range(n):
        seq = seqs[scratch[k]]
        batch[k] = scratch[k]
        if k < num_decodes:
            context += seq.tokens
        else:
            start, end = seq.computed, seq.computed + seq.chunk
            tokens += seq.chunk
            pairs += seq.chunk * (start + end + 1)
            context += end
    seconds = batch_s(worker, tokens, pairs / 2, num_decodes, context)
    observe(worker, tokens, num_decodes, context, seconds)
    worker.steps += 1
    worker.busy_s += seconds
    worker.prefill_tokens += tokens
    worker.decode_tokens += num_decodes
    worker.peak = max(worker.peak, worker.num_blocks - worker.free)
    push(heap, w, seconds, COMPLETE, index, 0)


@njit(cache=True)
def _add(w: Records, worker: Records, seqs: Records, s: int) -> None:
    """`Scheduler.add`; what it would refuse is refused before the run, but for a full queue."""
    if worker.count[0] >= worker.max_queue:
        w.failed = 1
        return
    seqs[s].order = worker.orders
    worker.orders += 1
    seqs[s].state = WAITING
    insert_waiting(worker, seqs, s)


@njit(cache=True)
def _complete(
    heap: Heap, w: Records, workers: Records, commands: ho.Commands, requests: Records, seqs: Records, hands: Records,
    batch: Records, index: int,
) -> None:  # fmt: skip
    """`SimWorker._complete`, and `SimRouter.on_updates` and `_on_updates` for what it tells."""
    worker = workers[index]
    worker.stepping = 0
    heard_s = w.now_s + w.message_s
    told = 0
    for k in range(worker.batch):
        s = batch[k]
        seqs[s].told_first = seqs[s].told_ready = seqs[s].told_end = seqs[s].told_holds = 0
        before = seqs[s].tokens
        if enter(worker, seqs, s, k < worker.decodes, w.now_s):
            if seqs[s].tokens > before:
                _note_token(requests[s // 2], seqs[s], s, heard_s)
            if seqs[s].told_first + seqs[s].told_ready + seqs[s].told_end > 0:
                batch[told] = s
                told += 1
    for k in range(told):
        s = batch[k]
        i, seq = s // 2, seqs[s]
        h = hands[i]
        if seq.told_ready > 0 and h.live == 1 and h.source_done == 0:
            h.ready += seq.told_ready
            ho.announce(heap, w, hands, i)
            ho._settle(w, hands, i)
        if seq.mode == PREFILL and seq.told_first == 1 and seq.told_end == 0 and h.live == 1:
            h.token = 1
            ho.announce(heap, w, hands, i)
            ho._settle(w, hands, i)
        if seq.told_holds == 1 and not ho.abort_any(heap, w, workers, commands, requests, hands, i, s % 2):
            ho.put(heap, w, workers, commands, index, ABORT, s)
    for k in range(told):
        s = batch[k]
        if seqs[s].told_first == 1:
            push(heap, w, w.message_s, FIRST_TOKEN, s, 0)
        if seqs[s].told_end == 1:
            push(heap, w, w.message_s, END, s, 0)
    if worker.woken == 0:
        worker.woken = 1
        push(heap, w, w.step_s, TURN, index, 0)


@njit(cache=True)
def _note_token(request: Records, seq: Records, s: int, heard_s: float) -> None:
    """What `SimRouter._on_updates` notes of a token, `message_s` later."""
    if request.tokens == 0:
        request.first_s = heard_s
    else:
        request.gap_s = max(request.gap_s, heard_s - request.last_s)
    request.last_s = heard_s
    request.tokens += 1
    if seq.told_first == 1:
        if s % 2 == 0 or seq.mode == FULL:
            request.prefill_s = seq.told_first_s
        else:
            request.wait_s = seq.told_queue_s


Kernel = Any
