"""Which tasks make the next batch of a machine."""

from __future__ import annotations

from placement.compat.splitwise.state import (
    BATCH,
    BLOCKED,
    MAX_BATCH,
    MAX_BATCH_TOKENS,
    MAX_PASSED_OVER,
    PENDING,
    POOL,
    PROMPTS,
    State,
)
from placement.compiled import compiled


@compiled
def is_full(state: State, task: int, tokens: int) -> bool:
    """Whether the selection ends before this task."""
    num = state.selection[MAX_BATCH]
    return bool(num == MAX_BATCH or (num > 0 and tokens + state.task[task].tokens > MAX_BATCH_TOKENS))


@compiled
def take(state: State, m: int, task: int, memory: int) -> int:
    """Put a task into the selection: the memory that this takes; -1 where there is not so much."""
    need = 0 if state.task[task].ran else state.task[task].bytes
    if not state.task[task].ran and memory + need > state.machine[m].room:
        return -1
    state.selection[state.selection[MAX_BATCH]] = task
    state.selection[MAX_BATCH] += 1
    state.task[task].chosen = state.counter[0]
    state.request[task // 2].chosen = state.counter[0]
    return int(need)


@compiled
def select(state: State, m: int) -> None:
    """The next batch: tasks passed over often, new prompts, preempted sequences, running ones, and then any other."""
    memory, tokens = state.machine[m].used, 0
    state.selection[MAX_BATCH] = 0
    state.counter[0] += 1
    current = state.counter[0]
    for place in range(state.num[PENDING, m]):
        task = state.rows[PENDING, m, place]
        if state.task[task].passed_over < MAX_PASSED_OVER or is_full(state, task, tokens):
            break
        need = -1 if state.request[task // 2].chosen == current else take(state, m, task, memory)
        if need >= 0:
            memory += need
            tokens += state.task[task].tokens
    for queue in (PROMPTS, BLOCKED, BATCH):
        for place in range(state.num[queue, m]):
            task = state.rows[queue, m, place]
            if is_full(state, task, tokens):
                break
            if state.request[task // 2].chosen == current:
                continue
            need = take(state, m, task, memory)
            if need < 0:
                break
            memory += need
            tokens += state.task[task].tokens
    for place in range(state.num[POOL, m]):
        r = state.rows[POOL, m, place]
        if state.selection[MAX_BATCH] == MAX_BATCH:
            break
        if state.request[r].chosen == current:
            continue
        task = first_task(state, m, r)
        need = -1 if is_full(state, task, tokens) else take(state, m, task, memory)
        if need < 0:
            break
        memory += need
        tokens += state.task[task].tokens
    state.machine[m].batch_tokens = tokens


@compiled
def first_task(state: State, m: int, r: int) -> int:
    """A request's task on a machine; its prompt before the rest."""
    return 2 * r if state.request[r].prompt_at == m else 2 * r + 1
