"""Sequences that only decode, step after step: what changes in each of them is entered once, not in every step.

From its second decode to the one before its last a sequence does the same in every step of its worker: one more token,
one more block every `size` tokens, one more gap for its client. So a step does not walk over such sequences. The worker
knows their number, the sum of their lengths (whole numbers: no order of adding matters), how many grow in which step,
and the gaps between its last steps; a sequence's own record is brought up to date when it comes back to the list of
those running: for its last step, or where blocks are so short that somebody may have to be preempted. Whatever tells
anybody of a sequence happens in that list, in its order, which is that of `scheduling.sequence_table`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.cache import allocate, publish
from placement.simulator.fast.lists import IN_RUNNING, insert_running, remove
from placement.simulator.fast.records import PREFILL, RUNNING, Records
from placement.simulator.fast.store import Cache

MAX_GAPS = 64
KEY_BITS = 32
KEY = 1 << KEY_BITS  # a member is its last step * KEY + its sequence


class Steady(NamedTuple):
    """Rows of all workers."""

    members: Any  # [workers, seats] of last step and sequence, in no order
    growing: Any  # [workers, block size]: how many take a block in the steps of this number modulo the block size
    gap_steps: Any  # [workers, MAX_GAPS]: steps whose gap is larger than all after it, in order
    gap_s: Any  # [workers, MAX_GAPS]: these gaps


def steady_rows(num_workers: int, seats: int, block_size: int) -> Steady:
    """For workers that have no sequence yet."""
    return Steady(
        np.zeros((num_workers, seats), np.int64),
        np.zeros((num_workers, block_size), np.int64),
        np.zeros((num_workers, MAX_GAPS), np.int64),
        np.zeros((num_workers, MAX_GAPS)),
    )


@compiled
def _blocks(worker: Records, tokens: int) -> int:
    return int((tokens + worker.size - 1) // worker.size)


@compiled
def _phase(worker: Records, seq: Records) -> int:
    """It has `base` + k - 1 tokens when step k is formed, and grows where one more than whole blocks hold."""
    return int((2 - seq.base) % worker.size)


@compiled
def join(worker: Records, cache: Cache | None, seqs: Records, steady: Steady, index: int, s: int) -> None:
    """Step `worker.steps` is computed, and `s` had its part in it: it becomes steady, if it may."""
    seq = seqs[s]
    num = worker.steady + worker.count[IN_RUNNING]
    plain = seq.state == RUNNING and seq.mode != PREFILL and seq.tokens > seq.given and seq.computed == seq.tokens - 1
    if not plain or seq.most - seq.tokens < 3 or seq.blocks != _blocks(worker, seq.computed) or worker.free < 2 * num:
        return
    if cache is not None and worker.prefix_tokens > 0 and cache.names[s // 2].alike == 1:
        return  # others may be looking for what it generates
    remove(worker, seqs, s, IN_RUNNING)
    if worker.steady == 0:
        worker.num_gaps = 0
        worker.next_end = 1 << 30
    seq.since = worker.steps
    seq.base = seq.tokens - worker.steps
    end = seq.most - seq.base
    worker.next_end = min(worker.next_end, end)
    worker.steady_base += seq.base
    steady.growing[index, _phase(worker, seq)] += 1
    worker.steady_room += _blocks(worker, seq.most - 1) - seq.blocks
    steady.members[index, worker.steady] = end * KEY + s
    worker.steady += 1


@compiled
def note_gap(
    worker: Records, cache: Cache | None, requests: Records, seqs: Records, steady: Steady, index: int, heard_s: float
) -> None:  # fmt: skip
    """Step `worker.steps` is computed, and its tokens are heard of at `heard_s`."""
    if worker.steady > 0:
        gap_s = heard_s - worker.heard_s
        num = worker.num_gaps
        while num > 0 and steady.gap_s[index, num - 1] <= gap_s:
            num -= 1
        steady.gap_steps[index, num] = worker.steps
        steady.gap_s[index, num] = gap_s
        worker.num_gaps = num + 1
    worker.heard_s = heard_s
    if worker.num_gaps == MAX_GAPS:
        for k in range(worker.steady):
            settle(worker, cache, requests, seqs, steady, index, steady.members[index, k] & (KEY - 1), worker.steps)
        worker.num_gaps = 0


@compiled
def settle(
    worker: Records, cache: Cache | None, requests: Records, seqs: Records, steady: Steady, index: int, s: int,
    computed: int,
) -> None:  # fmt: skip
    """Enter what a sequence did until step `computed`."""
    seq, request = seqs[s], requests[s // 2]
    k = 0
    while k < worker.num_gaps and steady.gap_steps[index, k] <= seq.since:
        k += 1
    if k < worker.num_gaps:
        request.gap_s = max(request.gap_s, steady.gap_s[index, k])
    request.tokens += computed - seq.since
    request.last_s = worker.heard_s
    seq.since = computed
    seq.tokens = seq.base + computed
    seq.computed = seq.tokens - 1
    seq.blocks = _blocks(worker, seq.computed)
    publish(worker, cache, seq, s)


@compiled
def _recall(
    worker: Records, cache: Cache | None, requests: Records, seqs: Records, steady: Steady, index: int, until: int
) -> None:  # fmt: skip
    """Back to those running: whoever has its last step by step `until`. No step is under way."""
    worker.next_end = 1 << 30
    k = 0
    while k < worker.steady:
        member = steady.members[index, k]
        if member >> KEY_BITS > until:
            worker.next_end = min(worker.next_end, member >> KEY_BITS)
            k += 1
            continue
        s = member & (KEY - 1)
        settle(worker, cache, requests, seqs, steady, index, s, worker.steps)
        worker.steady -= 1
        worker.steady_base -= seqs[s].base
        worker.steady_room -= _blocks(worker, seqs[s].most - 1) - seqs[s].blocks
        steady.growing[index, _phase(worker, seqs[s])] -= 1
        steady.members[index, k] = steady.members[index, worker.steady]
        insert_running(worker, seqs, s)


@compiled
def form_steady(
    worker: Records, cache: Cache | None, requests: Records, seqs: Records, steady: Steady, index: int
) -> None:  # fmt: skip
    """Before a step is formed: those whose last it is are called back; the others grow, or all are called back."""
    if worker.steady == 0:
        return
    step = worker.steps + 1
    if worker.next_end <= step:
        _recall(worker, cache, requests, seqs, steady, index, step)
    grow = steady.growing[index, step % worker.size]
    if worker.free < grow + worker.count[IN_RUNNING]:
        _recall(worker, cache, requests, seqs, steady, index, 1 << 30)
    else:
        grow_steady(worker, cache, grow)


@compiled
def grow_steady(worker: Records, cache: Cache | None, num_blocks: int) -> None:
    """In one step, all of them together."""
    allocate(worker, cache, num_blocks)
    worker.steady_room -= num_blocks
