"""`scheduling.batching` and what is below it, compiled: which sequences are computed next, and what that changes."""

from __future__ import annotations

from numba import njit

from placement.simulator.fast.lists import (
    IN_RESERVED,
    IN_RUNNING,
    IN_WAITING,
    append,
    earlier,
    insert_waiting,
    remove,
)
from placement.simulator.fast.records import (
    DECODE,
    DRAINING,
    FINISHED,
    HELD,
    NEVER,
    PREFILL,
    QUARANTINED,
    RESERVED,
    RUNNING,
    WAITING,
    Records,
)


@njit(cache=True)
def blocks_for(worker: Records, tokens: int) -> int:
    return int((tokens + worker.size - 1) // worker.size)


@njit(cache=True)
def awaits_kv(seq: Records) -> bool:
    return bool(seq.mode == DECODE and seq.committed_s < 0.0)


@njit(cache=True)
def move(worker: Records, seqs: Records, s: int, to: int) -> None:
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
        _free(worker, seq)
        insert_waiting(worker, seqs, s)
    elif to == RUNNING:
        append(worker, seqs, s, IN_RUNNING)
        worker.growing += grows
    elif to == RESERVED:
        append(worker, seqs, s, IN_RESERVED)
        worker.growing += 1
    elif to == FINISHED:
        _free(worker, seq)


@njit(cache=True)
def _free(worker: Records, seq: Records) -> None:
    worker.free += seq.blocks
    seq.blocks = 0
    seq.computed = 0


@njit(cache=True)
def abort(worker: Records, seqs: Records, s: int) -> None:
    """`Scheduler.abort`."""
    state = seqs[s].state
    if WAITING <= state <= QUARANTINED:
        move(worker, seqs, s, DRAINING if seqs[s].in_step == 1 else FINISHED)


@njit(cache=True)
def quarantine(worker: Records, seqs: Records, s: int) -> None:
    """`Scheduler.quarantine`."""
    if RUNNING <= seqs[s].state <= HELD:
        move(worker, seqs, s, QUARANTINED)


@njit(cache=True)
def commit(worker: Records, seqs: Records, s: int, now_s: float) -> None:
    """`Scheduler.try_commit`; a request of one token never comes here."""
    seq = seqs[s]
    if seq.state != RESERVED:
        return
    seq.committed_s = now_s
    move(worker, seqs, s, RUNNING)
    seq.computed = seq.tokens
    seq.given += 1
    seq.tokens += 1


@njit(cache=True)
def _grow(worker: Records, seqs: Records, s: int) -> int:
    """`BatchFormer._grow`: how many were preempted; -1 - that many where there is no block nevertheless."""
    preempted = 0
    while worker.free == 0:
        victim = -1
        one = worker.head[IN_RUNNING]
        while one >= 0:
            if seqs[one].mode != PREFILL and (victim < 0 or earlier(seqs, victim, one)):
                victim = one
            one = seqs[one].next
        if victim == s:
            return -1 - preempted
        move(worker, seqs, victim, WAITING)
        preempted += 1
    worker.free -= 1
    seqs[s].blocks += 1
    return preempted


@njit(cache=True)
def _take(seqs: Records, s: int, num_tokens: int, now_s: float) -> None:
    """`_step`."""
    seq = seqs[s]
    if seq.first_step_s < 0.0:
        seq.first_step_s = now_s
    seq.in_step = 1
    seq.chunk = num_tokens


@njit(cache=True)
def _admit(worker: Records, seqs: Records, budget: int) -> int:
    """`BatchFormer._admit`; -1 for none."""
    s = worker.head[IN_WAITING]
    if s < 0 or worker.count[IN_RUNNING] + worker.count[IN_RESERVED] >= worker.seats:
        return -1
    seq = seqs[s]
    awaits = awaits_kv(seq)
    if budget == 0 and not awaits:
        return -1
    wanted = blocks_for(worker, seq.tokens + (1 if awaits else 0))
    spare = worker.watermark if worker.growing > 0 else 0
    if wanted + spare > worker.free:
        return -1
    worker.free -= wanted
    seq.blocks = wanted
    move(worker, seqs, s, RESERVED if awaits else RUNNING)
    seq.computed = 0
    return int(s)


@njit(cache=True)
def form(worker: Records, seqs: Records, now_s: float, batch: Records, reserved: Records) -> tuple[int, int, int]:
    """`BatchFormer.form`: fills `batch` (decodes, then prompts) and `reserved`; numbers of decodes, all, reserved."""
    n = preempted = 0
    num_prompts, prompts_at = 0, len(batch) // 2
    one = worker.head[IN_RUNNING]
    num_running = worker.count[IN_RUNNING]
    for i in range(num_running):
        batch[prompts_at + num_running + i] = one  # preemption changes the list under the walk
        one = seqs[one].next
    for i in range(num_running):
        s = batch[prompts_at + num_running + i]
        seq = seqs[s]
        if seq.state != RUNNING:
            continue
        if seq.tokens - seq.computed > 1:
            batch[prompts_at + num_prompts] = s
            num_prompts += 1
        elif seq.tokens <= seq.blocks * worker.size:
            batch[n] = s
            n += 1
        else:
            grown = _grow(worker, seqs, s)
            if grown >= 0:
                batch[n] = s
                n += 1
                preempted += grown
            else:
                preempted += -1 - grown
    num_decodes = 0
    for i in range(n):
        if seqs[batch[i]].state == RUNNING:
            batch[num_decodes] = batch[i]
            num_decodes += 1
    for i in range(num_decodes):
        _take(seqs, batch[i], 1, now_s)
    budget = worker.budget - num_decodes
    if num_decodes > 0 and worker.mixed >= 0:
        budget = min(budget, worker.mixed)
    n = num_decodes
    for i in range(num_prompts):
        s = batch[prompts_at + i]
        if budget == 0:
            break
        if seqs[s].state != RUNNING:
            continue
        num_tokens = min(seqs[s].tokens - seqs[s].computed, budget)
        _take(seqs, s, num_tokens, now_s)
        budget -= num_tokens
        batch[n] = s
        n += 1
    num_reserved = 0
    while preempted == 0:
        s = _admit(worker, seqs, budget)
        if s < 0:
            break
        if seqs[s].state == RESERVED:
            reserved[num_reserved] = s
            num_reserved += 1
        else:
            num_tokens = min(seqs[s].tokens - seqs[s].computed, budget)
            _take(seqs, s, num_tokens, now_s)
            budget -= num_tokens
            batch[n] = s
            n += 1
    return num_decodes, n, num_reserved


@njit(cache=True)
def enter(worker: Records, seqs: Records, s: int, is_decode: bool, now_s: float) -> bool:
    """`ResultBook.enter_results` for one sequence of a step; True if it has a token or something else to tell."""
    seq = seqs[s]
    seq.in_step = 0
    if seq.state != RUNNING:
        if seq.state == DRAINING:
            move(worker, seqs, s, FINISHED)
        return False
    start = seq.tokens - 1 if is_decode else seq.computed
    seq.computed = start + seq.chunk
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
            move(worker, seqs, s, QUARANTINED)
        else:
            move(worker, seqs, s, FINISHED)
    elif seq.mode == PREFILL:
        seq.told_ready = seq.blocks - seq.ready
        seq.ready = seq.blocks
        move(worker, seqs, s, HELD)
    return True


@njit(cache=True)
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


@njit(cache=True)
def promised_blocks(worker: Records, seqs: Records) -> int:
    """`Scheduler.promised_blocks`."""
    total = 0
    for which in (IN_RUNNING, IN_RESERVED):
        s = worker.head[which]
        while s >= 0:
            if seqs[s].mode != PREFILL:
                total += max(0, blocks_for(worker, seqs[s].most - 1) - seqs[s].blocks)
            s = seqs[s].next
    return total


__all__ = [
    "NEVER",
    "abort",
    "blocks_for",
    "commit",
    "enter",
    "form",
    "promised_blocks",
    "quarantine",
    "uncomputed_tokens",
]
