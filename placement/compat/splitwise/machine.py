"""The machine scheduler: batches that run for as many iterations as nothing changes."""

from __future__ import annotations

import numpy as np

from placement.compat.requests import Floats
from placement.compat.splitwise.selection import first_task, select
from placement.compat.splitwise.state import (
    BATCH,
    BLOCKED,
    MAX_BATCH,
    MAX_BATCH_TOKENS,
    MIXED_POOL,
    NEVER,
    PENDING,
    POOL,
    POOLS,
    PROMPT_S,
    PROMPTS,
    TOKEN_S,
    TOKENS,
    State,
    append,
    insert,
    remove,
)
from placement.compiled import compiled

MIXED_FACTOR = 1.1  # of an iteration with prompts and sequences, over prompts of as many tokens


@compiled
def interpolate(x: Floats, y: Floats, at: float) -> float:
    """On the line through the two points around `at`, or through the two nearest ones beyond the ends."""
    high = min(max(int(np.searchsorted(x, at)), 1), len(x) - 1)
    slope = (y[high] - y[high - 1]) / (x[high] - x[high - 1])
    return float(slope * (at - x[high - 1]) + y[high - 1])


@compiled
def release(state: State, m: int, r: int) -> None:
    """Give back what a request holds on a machine."""
    state.machine[m].used -= state.request[r].held
    state.machine[m].promised -= state.request[r].held


@compiled
def add_pending(state: State, m: int, task: int) -> None:
    """By how often it was passed over, then by arrival; behind its equals."""
    row, low, high = state.rows[PENDING, m], 0, state.num[PENDING, m]
    often, arrival = state.task[task].passed_over, state.request[task // 2].arrival
    while low < high:
        middle = (low + high) // 2
        other = row[middle]
        others = state.task[other].passed_over
        if often < others or (often == others and arrival < state.request[other // 2].arrival):
            high = middle
        else:
            low = middle + 1
    insert(state, PENDING, m, low, task)


@compiled
def arrive(state: State, m: int, task: int, now: float) -> None:
    """A task comes to a machine: it starts, cuts the running iterations short, or waits for their end."""
    r, size, machine = task // 2, state.task[task].tokens, state.machine
    if state.request[r].prompt_at != m:
        row, low, high = state.rows[POOL, m], 0, state.num[POOL, m]
        while low < high:
            middle = (low + high) // 2
            if state.request[r].arrival < state.request[row[middle]].arrival:
                high = middle
            else:
                low = middle + 1
        insert(state, POOL, m, low, r)
    add_pending(state, m, task)
    if task % 2 == 0:
        state.request[r].prompt_at = m
        append(state, PROMPTS, m, task)
    num = state.num[BATCH, m]
    if num == 0:
        if machine[m].used + state.task[task].bytes <= machine[m].room:
            start(state, m, now)
    elif num < MAX_BATCH and machine[m].batch_tokens + size <= MAX_BATCH_TOKENS:
        pause(state, m, now)
    elif task % 2 == 0:
        sequences = num - num_prompts(state, m)
        if sequences and machine[m].batch_tokens - sequences + size <= MAX_BATCH_TOKENS:
            pause(state, m, now)


@compiled
def num_prompts(state: State, m: int) -> int:
    prompts = 0
    for place in range(state.num[BATCH, m]):
        prompts += state.rows[BATCH, m, place] % 2 == 0
    return prompts


@compiled
def change_batch(state: State, m: int) -> None:
    """From the running batch to the selected one: who is left out is preempted."""
    current, place = state.counter[0], 0
    while place < state.num[BATCH, m]:
        task = state.rows[BATCH, m, place]
        if state.task[task].chosen == current:
            place += 1
            continue
        remove(state, BATCH, m, task)
        state.task[task].running, state.task[task].blocked = False, True
        add_pending(state, m, task)
        append(state, BLOCKED, m, task)
    for place in range(state.selection[MAX_BATCH]):
        task = state.selection[place]
        if state.task[task].running:
            continue
        remove(state, PENDING, m, task)
        if state.task[task].blocked:
            remove(state, BLOCKED, m, task)
        if task % 2 == 0:
            remove(state, PROMPTS, m, task)
        append(state, BATCH, m, task)
        state.task[task].running, state.task[task].blocked = True, False
    for place in range(state.num[POOL, m]):
        task = first_task(state, m, state.rows[POOL, m, place])
        state.task[task].passed_over += not state.task[task].running


@compiled
def start(state: State, m: int, now: float) -> None:
    """Form a batch and run it until its first sequence ends, or for one iteration if there is a prompt in it."""
    select(state, m)
    change_batch(state, m)
    machine, num = state.machine, state.num[BATCH, m]
    machine[m].ends = NEVER
    if num == 0:
        if state.num[POOL, m] == 0:
            go_home(state, m)
        return
    tokens, prompts, least = 0, num_prompts(state, m), NEVER
    for place in range(num):
        task = state.rows[BATCH, m, place]
        tokens += state.task[task].tokens
        least = min(least, state.task[task].left)
        if not state.task[task].ran:
            state.task[task].ran = True
            machine[m].used += state.task[task].bytes
            state.request[task // 2].held += state.task[task].bytes
    curve = PROMPT_S if prompts else TOKEN_S
    iteration = interpolate(state.curves[m, TOKENS], state.curves[m, curve], tokens)
    machine[m].iteration = iteration * (MIXED_FACTOR if 0 < prompts < num else 1.0)
    machine[m].contiguous = 1.0 if prompts else least
    run_until(state, m, now + machine[m].iteration * machine[m].contiguous)


@compiled
def run_until(state: State, m: int, end: float) -> None:
    state.machine[m].ends = end
    state.machine[m].order = state.counter[1]
    state.counter[1] += 1


@compiled
def go_home(state: State, m: int) -> None:
    """An empty machine leaves the mixed pool."""
    for place in range(state.num[POOLS, MIXED_POOL]):
        if state.rows[POOLS, MIXED_POOL, place] == m:
            remove(state, POOLS, MIXED_POOL, m)
            append(state, POOLS, state.machine[m].home, m)
            return


@compiled
def pause(state: State, m: int, now: float) -> None:
    """Let the iteration that is running be the last of its run; prompts have only one."""
    machine = state.machine
    if machine[m].paused or num_prompts(state, m):
        return
    machine[m].paused = True
    elapsed = now - (machine[m].ends - machine[m].iteration * machine[m].contiguous)
    machine[m].contiguous = elapsed // machine[m].iteration + 1
    run_until(state, m, now + (machine[m].iteration * machine[m].contiguous - elapsed))
