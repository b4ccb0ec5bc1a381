"""The cluster scheduler, the transfers, and the walk over all events."""

from __future__ import annotations

from placement.compat.splitwise.machine import arrive, pause, release, start
from placement.compat.splitwise.state import (
    BATCH,
    FLOWS,
    MAX_BATCH,
    MAX_BATCH_TOKENS,
    MIXED_POOL,
    NEVER,
    PENDING,
    POOL,
    POOLS,
    PROMPT_POOL,
    TOKEN_POOL,
    State,
    append,
    remove,
)
from placement.compiled import compiled

LONG_QUEUE_TOKENS = 8192
LINK_BYTES_PER_S = 200 * 1024**3
RETRY_S = 1.0  # between two looks for room at the target


@compiled
def least(state: State, pool: int, by_memory: bool) -> int:
    """The machine of a pool with the fewest pending tokens, or promised bytes; the first of equals; -1 for none."""
    best, fewest = -1, 0
    for place in range(state.num[POOLS, pool]):
        one = state.rows[POOLS, pool, place]
        load = state.machine[one].promised if by_memory else state.machine[one].pending_tokens
        if best < 0 or load < fewest:
            best, fewest = one, load
    return best


@compiled
def find_source(state: State, prompt: int) -> int:
    for pool in (PROMPT_POOL, MIXED_POOL):
        best = least(state, pool, False)
        if best >= 0 and (
            state.num[PENDING, best] == 0 or state.machine[best].pending_tokens + prompt <= LONG_QUEUE_TOKENS
        ):
            return best
    return -1


@compiled
def find_target(state: State, need: int) -> int:
    for pool in (TOKEN_POOL, MIXED_POOL):
        best = least(state, pool, True)
        if best >= 0 and state.machine[best].promised + need < state.machine[best].room:
            return best
    return -1


@compiled
def to_mixed(state: State, pool: int, one: int) -> int:
    remove(state, POOLS, pool, one)
    append(state, POOLS, MIXED_POOL, one)
    return one


@compiled
def schedule(state: State, r: int, now: float) -> None:
    """Choose both machines of a request, move machines between pools where none will do, and submit it."""
    prompt, request, machine = state.request[r].prompt, state.request, state.machine
    in_prompt, in_token = state.task[2 * r].bytes, state.task[2 * r + 1].bytes
    source, target = find_source(state, prompt), find_target(state, in_prompt + in_token)
    if source < 0 and state.num[POOLS, TOKEN_POOL]:
        source = to_mixed(state, TOKEN_POOL, least(state, TOKEN_POOL, False))
    if target < 0 and state.num[POOLS, PROMPT_POOL]:
        target = to_mixed(state, PROMPT_POOL, least(state, PROMPT_POOL, True))
    if source < 0 or target < 0:
        source = -1
        for pool in (PROMPT_POOL, MIXED_POOL, TOKEN_POOL):
            best = least(state, pool, False)
            if best >= 0 and (source < 0 or machine[best].pending_tokens < machine[source].pending_tokens):
                source = best
        target = source
    machine[source].promised += in_prompt
    machine[target].promised += in_token + (in_prompt if source != target else 0)
    machine[source].pending_tokens += prompt
    machine[target].pending_tokens += 1
    request[r].source, request[r].target = source, target
    arrive(state, source, 2 * r, now)
    if source == target:
        arrive(state, target, 2 * r + 1, now)


@compiled
def has_room(state: State, r: int) -> bool:
    target = state.request[r].target
    return bool(state.machine[target].used + state.request[r].held <= state.machine[target].room)


@compiled
def transfer(state: State, r: int, now: float, kv_bytes: int) -> None:
    """Begin to send a prompt's KV over a link of its own, once the target has room; else look again later."""
    target, runs = state.request[r].target, has_room(state, r)
    if runs:
        state.machine[target].used += state.request[r].held
    state.request[r].flow_runs = runs
    state.request[r].flow_at = now + (state.request[r].prompt * kv_bytes / LINK_BYTES_PER_S if runs else RETRY_S)
    state.request[r].flow_order = state.counter[1]
    state.counter[1] += 1


@compiled
def transferred(state: State, r: int, now: float) -> None:
    """The target has the KV; the source has room for the next."""
    source = state.request[r].source
    remove(state, FLOWS, 0, r)
    release(state, source, r)
    arrive(state, state.request[r].target, 2 * r + 1, now)
    if state.num[PENDING, source] == 0:
        return
    if state.num[BATCH, source] == 0:
        need = state.task[state.rows[PENDING, source, 0]].bytes
        if state.machine[source].used + need <= state.machine[source].room:
            start(state, source, now)
    elif state.num[BATCH, source] < MAX_BATCH and state.machine[source].batch_tokens < MAX_BATCH_TOKENS:
        pause(state, source, now)


@compiled
def complete(state: State, m: int, now: float, kv_bytes: int) -> int:
    """The run of iterations is over: tasks end, the next batch starts. Returns how many requests ended."""
    num, place, ended = state.num[BATCH, m], 0, 0
    for at in range(num):
        state.task[state.rows[BATCH, m, at]].left -= state.machine[m].contiguous
    while place < state.num[BATCH, m]:
        task = state.rows[BATCH, m, place]
        if state.task[task].left > 0:
            place += 1
            continue
        remove(state, BATCH, m, task)
        state.task[task].running = False
        ended += task % 2
        end_task(state, m, task, now, kv_bytes)
    state.machine[m].paused = False
    start(state, m, now)
    return ended


@compiled
def end_task(state: State, m: int, task: int, now: float, kv_bytes: int) -> None:
    r, request = task // 2, state.request
    state.machine[m].pending_tokens -= state.task[task].tokens
    if task % 2:
        remove(state, POOL, m, r)
        request[r].exits = now
        release(state, m, r)
        return
    request[r].prompt_at = -1
    request[r].first_token = now
    if request[r].source != request[r].target:
        remove(state, POOL, m, r)
        append(state, FLOWS, 0, r)
        transfer(state, r, now, kv_bytes)


@compiled
def walk(state: State, kv_bytes: int) -> int:
    """Every event in order of time; returns how many requests came to their end. Exits are in state.request."""
    coming, ended, num = 0, 0, len(state.request)
    while ended < num:
        at, order, flow, m = NEVER, 0, -1, -1
        if coming < num:
            at, order = state.request[coming].arrival, coming
        waits = coming == num
        for one in range(len(state.machine)):
            end = state.machine[one].ends
            waits = waits and end == NEVER
            if end < at or (end == at and end < NEVER and state.machine[one].order < order):
                at, order, m = end, state.machine[one].order, one
        for place in range(state.num[FLOWS, 0]):
            r = state.rows[FLOWS, 0, place]
            waits = waits and not state.request[r].flow_runs and not has_room(state, r)
            if state.request[r].flow_at < at or (
                state.request[r].flow_at == at and state.request[r].flow_order < order
            ):
                at, order, flow, m = state.request[r].flow_at, state.request[r].flow_order, r, -1
        if waits:  # for memory that nobody will free
            return ended
        if flow >= 0 and state.request[flow].flow_runs:
            transferred(state, flow, at)
        elif flow >= 0:
            transfer(state, flow, at, kv_bytes)
        elif m >= 0:
            ended += complete(state, m, at, kv_bytes)
        else:
            schedule(state, coming, at)
            coming += 1
    return ended
