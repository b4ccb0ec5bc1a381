"""`placement.simulator.worker`, compiled: an engine's turn, and what a step tells."""

from __future__ import annotations

from numba import njit

from placement.simulator.fast import handoffs as ho
from placement.simulator.fast.estimator import observe
from placement.simulator.fast.events import Heap, push
from placement.simulator.fast.lists import insert_waiting
from placement.simulator.fast.records import (
    ABORT,
    ADD,
    COMMIT,
    COMPLETE,
    END,
    FIRST_TOKEN,
    FULL,
    PREFILL,
    QUARANTINE,
    SETTLE,
    TURN,
    WAITING,
    Records,
)
from placement.simulator.fast.routing import note_miss
from placement.simulator.fast.scheduler import abort, commit, enter, form, quarantine
from placement.simulator.fast.steps import batch_s


@njit(cache=True)
def turn(
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
def complete(
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
                _note_token(w, requests[s // 2], seqs[s], s, heard_s)
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
def _note_token(w: Records, request: Records, seq: Records, s: int, heard_s: float) -> None:
    """What `SimRouter._on_updates` notes of a token, `message_s` later."""
    if request.tokens == 0:
        request.first_s = heard_s
        if heard_s - request.arrival_s > w.ttft_s:
            note_miss(w, request, s // 2)
    else:
        request.gap_s = max(request.gap_s, heard_s - request.last_s)
    request.last_s = heard_s
    request.tokens += 1
    if seq.told_first == 1:
        if s % 2 == 0 or seq.mode == FULL:
            request.prefill_s = seq.told_first_s
        else:
            request.wait_s = seq.told_queue_s
