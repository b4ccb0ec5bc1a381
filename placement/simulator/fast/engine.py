"""`placement.simulator.worker`, compiled: an engine's turn, and what a step tells."""

from __future__ import annotations

from placement.compiled import compiled_inner as compiled
from placement.simulator.fast import handoff_target as target
from placement.simulator.fast import handoffs as ho
from placement.simulator.fast.ahead import Ahead, catch_up, look_ahead
from placement.simulator.fast.estimator import observe
from placement.simulator.fast.events import Queue, push, set_due
from placement.simulator.fast.forming import form
from placement.simulator.fast.lists import IN_RUNNING, insert_waiting
from placement.simulator.fast.records import (
    ABORT,
    ADD,
    COMMIT,
    END,
    FIRST_TOKEN,
    FULL,
    MESSAGE,
    PREFILL,
    QUARANTINE,
    SETTLE,
    STEP,
    TURN,
    WAITING,
    Records,
)
from placement.simulator.fast.routing import note_miss
from placement.simulator.fast.scheduler import abort, commit, enter, quarantine
from placement.simulator.fast.steady import Steady, join, note_gap
from placement.simulator.fast.steps import batch_s
from placement.simulator.fast.store import Cache


@compiled
def turn(
    queue: Queue, w: Records, workers: Records, cache: Cache | None, commands: Records, requests: Records,
    seqs: Records, hands: Records, steady: Steady, ahead: Ahead, batch: Records, scratch: Records, reserved: Records,
    params: Records, index: int,
) -> None:  # fmt: skip
    """`SimWorker._turn`."""
    worker = workers[index]
    worker.woken = 0
    if worker.stepping == 1:
        return
    while worker.command_head >= 0:
        command = commands[worker.command_head]
        kind, s, row = command.kind, command.s, worker.command_head
        worker.command_head = command.next
        command.next, w.free_command = w.free_command, row
        if kind == ADD:
            _add(w, worker, seqs, s)
        elif kind == COMMIT:
            commit(worker, cache, seqs, s, w.now_s)
        elif kind == QUARANTINE:
            quarantine(worker, cache, seqs, s)
        else:
            abort(worker, cache, seqs, s)
    num_decodes, n, num_reserved = form(worker, cache, requests, seqs, steady, index, w.now_s, scratch, reserved)
    if cache is None and worker.preempted * worker.caches > 0:
        w.forgot = 1
    for k in range(num_reserved):
        target.on_room(queue, w, hands, reserved[k] // 2, seqs[reserved[k]].cached)
        push(queue, w, MESSAGE, SETTLE, reserved[k], 0)
    if n + worker.steady == 0:
        return
    worker.stepping, worker.batch, worker.decodes = 1, n, num_decodes
    tokens = pairs = 0
    context = worker.steady_base + worker.steady * worker.steps
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
    num_decodes += worker.steady
    seconds = batch_s(params[worker.params], tokens, pairs / 2, num_decodes, context)
    if worker.observes == 1:
        observe(worker, tokens, num_decodes, context, seconds)
    worker.steps += 1
    worker.busy_s += seconds
    worker.prefill_tokens += tokens
    worker.decode_tokens += num_decodes
    worker.peak = max(worker.peak, worker.num_blocks - worker.free)
    if n == 0 and worker.count[IN_RUNNING] == 0 and w.ahead == 1:
        look_ahead(queue, w, worker, steady, ahead, params[worker.params], index, seconds)
    else:
        set_due(queue, w, index, w.now_s + seconds, 1)


@compiled
def _add(w: Records, worker: Records, seqs: Records, s: int) -> None:
    """`Scheduler.add`; what it would refuse is refused before the run, but for a full queue."""
    if worker.count[0] >= worker.max_queue:
        w.failed = 1
        return
    seqs[s].order = worker.orders
    worker.orders += 1
    seqs[s].state = WAITING
    insert_waiting(worker, seqs, s)


@compiled
def complete(
    queue: Queue, w: Records, workers: Records, cache: Cache | None, commands: Records, requests: Records,
    seqs: Records, hands: Records, steady: Steady, ahead: Ahead, batch: Records, index: int,
) -> None:  # fmt: skip
    """`SimWorker._complete`, and `SimRouter.on_updates` and `_on_updates` for what it tells."""
    worker = workers[index]
    if worker.ahead > 0:
        catch_up(w, worker, cache, requests, seqs, steady, ahead, index)
        worker.ahead = 0
    worker.stepping = 0
    heard_s = w.now_s + w.delays[MESSAGE]
    note_gap(worker, cache, requests, seqs, steady, index, heard_s)
    told = 0
    for k in range(worker.batch):
        s = batch[k]
        seqs[s].told_first = seqs[s].told_ready = seqs[s].told_end = seqs[s].told_holds = 0
        before = seqs[s].tokens
        if enter(worker, cache, seqs, s, k < worker.decodes, w.now_s):
            if seqs[s].tokens > before:
                _note_token(w, requests[s // 2], seqs[s], s, heard_s)
                join(worker, cache, seqs, steady, index, s)
            if seqs[s].told_first + seqs[s].told_ready + seqs[s].told_end > 0:
                batch[told] = s
                told += 1
    for k in range(told):
        s = batch[k]
        i, seq = s // 2, seqs[s]
        h = hands[i]
        if seq.told_ready > 0 and h.live == 1 and h.source_done == 0:
            h.ready += seq.told_ready
            ho.announce(queue, w, hands, i)
            ho.settle(w, hands, i)
        if seq.mode == PREFILL and seq.told_first == 1 and seq.told_end == 0 and h.live == 1:
            h.token = 1
            ho.announce(queue, w, hands, i)
            ho.settle(w, hands, i)
        if seq.told_holds == 1 and not target.abort_any(queue, w, workers, commands, requests, hands, i, s % 2):
            ho.put(queue, w, workers, commands, index, ABORT, s)
    for k in range(told):
        s = batch[k]
        if seqs[s].told_first == 1:
            push(queue, w, MESSAGE, FIRST_TOKEN, s, 0)
        if seqs[s].told_end == 1:
            push(queue, w, MESSAGE, END, s, 0)
    if worker.woken == 0:
        worker.woken = 1
        push(queue, w, STEP, TURN, index, 0)


@compiled
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
