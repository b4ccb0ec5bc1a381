"""`scheduling.batch_forming`, compiled: which sequences are computed next."""

from __future__ import annotations

from placement.compiled import compiled_apart
from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.cache import allocate, count_prefix, take_prefix
from placement.simulator.fast.lists import IN_RESERVED, IN_RUNNING, IN_WAITING, earlier
from placement.simulator.fast.records import PREFILL, RESERVED, RUNNING, WAITING, Records, wide
from placement.simulator.fast.scheduler import awaits_kv, blocks_for, move
from placement.simulator.fast.steady import Steady, form_steady
from placement.simulator.fast.store import Cache


@compiled_apart
def _grow(worker: Records, cache: Cache | None, seqs: Records, s: int) -> int:
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
        move(worker, cache, seqs, victim, WAITING)
        worker.preempted += 1
        preempted += 1
    allocate(worker, cache, 1)
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
def _admit(worker: Records, cache: Cache | None, seqs: Records, budget: int) -> int:
    """`BatchFormer._admit`; -1 for none."""
    s = wide(worker.head[IN_WAITING])
    if s < 0 or worker.count[IN_RUNNING] + worker.steady + worker.count[IN_RESERVED] >= worker.seats:
        return -1
    seq = seqs[s]
    awaits = awaits_kv(seq)
    if budget == 0 and not awaits:
        return -1
    wanted = blocks_for(worker, seq.tokens + (1 if awaits else 0))
    spare = worker.watermark if worker.growing > 0 else 0
    matched = 0
    if cache is not None and worker.prefix_tokens > 0:
        matched = _matched(worker, cache, seq, s, wanted + spare, spare)
        if matched < 0:
            return -1
        take_prefix(worker, cache, s // 2, matched)
    elif wanted + spare > worker.free:
        return -1
    allocate(worker, cache, wanted - matched)
    seq.blocks = wanted
    move(worker, cache, seqs, s, RESERVED if awaits else RUNNING)
    seq.computed = matched * worker.size
    seq.published = seq.cached = matched
    if seq.first_step_s < 0.0 and seq.committed_s < 0.0:
        seq.cached_tokens = seq.computed
    return int(s)


@compiled
def _matched(worker: Records, cache: Cache, seq: Records, s: int, wanted: int, spare: int) -> int:
    """`BatchFormer._try_place`: blocks of its prefix that are there; -1 where the others are not free."""
    if (
        worker.refused == s
        and worker.refused_free == worker.free
        and worker.refused_named == worker.named
        and worker.refused_spare == spare
    ):
        return -1
    matched = idle = 0
    usable = (seq.tokens - (0 if awaits_kv(seq) else 1)) // worker.size
    if wanted - usable <= worker.free:
        matched, idle = count_prefix(worker, cache, s // 2, usable)
    if wanted - matched <= worker.free - idle:
        return matched
    worker.refused, worker.refused_free, worker.refused_named = s, worker.free, worker.named
    worker.refused_spare = spare
    return -1


@compiled
def form(
    worker: Records, cache: Cache | None, requests: Records, seqs: Records, steady: Steady, index: int, now_s: float,
    batch: Records, reserved: Records,
) -> tuple[int, int, int]:  # fmt: skip
    """`BatchFormer.form`: fills `batch` (decodes, then prompts) and `reserved`; numbers of decodes, all, reserved.

    Those that are steady are part of the step, and neither in `batch` nor in the numbers.
    """
    form_steady(worker, cache, requests, seqs, steady, index)
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
            grown = _grow(worker, cache, seqs, s)
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
        s = _admit(worker, cache, seqs, budget)
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
