"""`scheduling.batching`, compiled but for `forming`: commands, what a step changes, a worker's account of itself."""

from __future__ import annotations

from placement.compiled import compiled_apart
from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.cache import free_blocks, publish
from placement.simulator.fast.lists import (
    IN_RESERVED,
    IN_RUNNING,
    IN_WAITING,
    append,
    insert_waiting,
    remove,
)
from placement.simulator.fast.records import (
    DECODE,
    DRAINING,
    FINISHED,
    HELD,
    PREFILL,
    QUARANTINED,
    RESERVED,
    RUNNING,
    WAITING,
    Records,
)
from placement.simulator.fast.store import Cache


@compiled
def blocks_for(worker: Records, tokens: int) -> int:
    return int((tokens + worker.size - 1) // worker.size)


@compiled
def awaits_kv(seq: Records) -> bool:
    return bool(seq.mode == DECODE and seq.committed_s < 0.0)


@compiled
def move(worker: Records, cache: Cache | None, seqs: Records, s: int, to: int) -> None:
    """`SequenceTable.move`."""
    seq = seqs[s]
    before = seq.state
    grows = 0 if seq.mode == PREFILL else 1
    seq.state = to
    if before == WAITING:
        remove(worker, seqs, s, IN_WAITING)
    elif before == RUNNING:
        remove(worker, seqs, s, IN_RUNNING)
        worker.growing -= grows
    elif before == RESERVED:
        remove(worker, seqs, s, IN_RESERVED)
        worker.growing -= 1
    if to == WAITING:
        _free(worker, cache, seq, s)
        insert_waiting(worker, seqs, s)
    elif to == RUNNING:
        append(worker, seqs, s, IN_RUNNING)
        seq.place = worker.places
        worker.places += 1
        worker.growing += grows
    elif to == RESERVED:
        append(worker, seqs, s, IN_RESERVED)
        worker.growing += 1
    elif to == FINISHED:
        _free(worker, cache, seq, s)


@compiled
def _free(worker: Records, cache: Cache | None, seq: Records, s: int) -> None:
    free_blocks(worker, cache, seq, s)
    seq.computed = 0


@compiled_apart
def abort(worker: Records, cache: Cache | None, seqs: Records, s: int) -> None:
    """`Scheduler.abort`."""
    state = seqs[s].state
    if WAITING <= state <= QUARANTINED:
        move(worker, cache, seqs, s, DRAINING if seqs[s].in_step == 1 else FINISHED)


@compiled_apart
def quarantine(worker: Records, cache: Cache | None, seqs: Records, s: int) -> None:
    """`Scheduler.quarantine`."""
    if RUNNING <= seqs[s].state <= HELD:
        move(worker, cache, seqs, s, QUARANTINED)


@compiled
def commit(worker: Records, cache: Cache | None, seqs: Records, s: int, now_s: float) -> None:
    """`Scheduler.try_commit`; a request of one token never comes here."""
    seq = seqs[s]
    if seq.state != RESERVED:
        return
    seq.committed_s = now_s
    move(worker, cache, seqs, s, RUNNING)
    seq.computed = seq.tokens
    seq.given += 1
    publish(worker, cache, seq, s)
    seq.tokens += 1


@compiled
def enter(worker: Records, cache: Cache | None, seqs: Records, s: int, is_decode: bool, now_s: float) -> bool:
    """`ResultBook.enter_results` for one sequence of a step; True if it has a token or something else to tell."""
    seq = seqs[s]
    seq.in_step = 0
    if seq.state != RUNNING:
        if seq.state == DRAINING:
            move(worker, cache, seqs, s, FINISHED)
        return False
    start = seq.tokens - 1 if is_decode else seq.computed
    seq.computed = start + seq.chunk
    publish(worker, cache, seq, s)
    seq.told_first = seq.told_ready = seq.told_end = seq.told_holds = 0
    if seq.computed != seq.tokens:
        if seq.mode == PREFILL:
            seq.told_ready = seq.computed // worker.size - seq.ready
            seq.ready += seq.told_ready
        return bool(seq.told_ready > 0)
    if seq.computed == seq.given:
        seq.told_first = 1
        begin_s = seq.committed_s if seq.committed_s >= 0.0 else seq.arrival_s
        seq.told_queue_s = seq.first_step_s - begin_s
        seq.told_first_s = now_s - seq.first_step_s
    seq.tokens += 1
    if seq.tokens >= seq.most:
        seq.told_end = 1
        if seq.ready > 0:
            seq.told_holds = 1
            move(worker, cache, seqs, s, QUARANTINED)
        else:
            move(worker, cache, seqs, s, FINISHED)
    elif seq.mode == PREFILL:
        seq.told_ready = seq.blocks - seq.ready
        seq.ready = seq.blocks
        move(worker, cache, seqs, s, HELD)
    return True


@compiled
def uncomputed_tokens(worker: Records, seqs: Records) -> int:
    """`Scheduler.uncomputed_tokens`."""
    total = 0
    s = worker.head[IN_WAITING]
    while s >= 0:
        if not awaits_kv(seqs[s]):
            total += seqs[s].tokens - seqs[s].computed
        s = seqs[s].next
    s = worker.head[IN_RUNNING]
    while s >= 0:
        left = seqs[s].tokens - seqs[s].computed
        if left > 1:
            total += left
        s = seqs[s].next
    return total


@compiled
def promised_blocks(worker: Records, seqs: Records) -> int:
    """`Scheduler.promised_blocks`."""
    total = worker.steady_room
    for which in (IN_RUNNING, IN_RESERVED):
        s = worker.head[which]
        while s >= 0:
            if seqs[s].mode != PREFILL:
                total += max(0, blocks_for(worker, seqs[s].most - 1) - seqs[s].blocks)
            s = seqs[s].next
    return int(total)
