"""`scheduling.batch_forming`, compiled: which sequences are computed next."""

from __future__ import annotations

from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.lists import IN_RESERVED, IN_RUNNING, IN_WAITING, earlier
from placement.simulator.fast.records import PREFILL, RESERVED, RUNNING, WAITING, Records
from placement.simulator.fast.scheduler import awaits_kv, blocks_for, move
from placement.simulator.fast.steady import Steady, form_steady


@compiled
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


@compiled
def _take(seqs: Records, s: int, num_tokens: int, now_s: float) -> None:
    """`_step`."""
    seq = seqs[s]
    if seq.first_step_s < 0.0:
        seq.first_step_s = now_s
    seq.in_step = 1
    seq.chunk = num_tokens


@compiled
def _admit(worker: Records, seqs: Records, budget: int) -> int:
    """`BatchFormer._admit`; -1 for none."""
    s = worker.head[IN_WAITING]
    if s < 0 or worker.count[IN_RUNNING] + worker.steady + worker.count[IN_RESERVED] >= worker.seats:
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


@compiled
def form(
    worker: Records, requests: Records, seqs: Records, steady: Steady, index: int, now_s: float, batch: Records,
    reserved: Records,
) -> tuple[int, int, int]:  # fmt: skip
    """`BatchFormer.form`: fills `batch` (decodes, then prompts) and `reserved`; numbers of decodes, all, reserved.

    Those that are steady are part of the step, and neither in `batch` nor in the numbers.
    """
    form_steady(worker, requests, seqs, steady, index)
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
    budget = worker.budget - num_decodes - worker.steady
    if num_decodes + worker.steady > 0 and worker.mixed >= 0:
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
