"""A compiled walk of a pipeline whose stages hold a prefill and a decode queue each.

It is the decode instance of several stages (requests come ready to decode) and the colocated baseline (they come as
prompts, and prompts go first).
"""

from __future__ import annotations

import numpy as np

from placement.compat.distserve.phases import BAD_STEP, FINISHED, REFUSED, decode_ms, overhead_ms, prefill_ms, ring_size
from placement.compat.requests import Floats, Ints
from placement.compiled import compiled

IDLE = np.inf  # the end of a stage that does nothing
BACK_PRESSURE_TOKENS = 9_000_000  # context waiting to decode at a stage above which it takes no more prompts


@compiled
def push(queue: Ints, head: int, count: int, one: int) -> None:
    queue[(head + count) & (len(queue) - 1)] = one


@compiled
def take_prompts(
    queue: Ints, head: int, count: int, first: bool, group: Ints, number: int, prompt: Ints, capacity: int
) -> tuple[int, int, int]:
    """How many from the queue's head make the next prefill batch, their tokens, and the sum of their squares.

    The first stage takes what fits and numbers it; the others take what the first one put together.
    """
    taken, tokens, squares = 0, 0, 0
    same = group[queue[head]]
    while taken < count:
        one = queue[(head + taken) & (len(queue) - 1)]
        if (tokens + prompt[one] > capacity) if first else (group[one] != same):
            break
        if first:
            group[one] = number
        tokens += prompt[one]
        squares += prompt[one] * prompt[one]
        taken += 1
    return taken, tokens, squares


@compiled
def take_sequences(queue: Ints, head: int, count: int, context: Ints, cap: int, most: int) -> tuple[int, int]:
    """How many from the queue's head decode together, and their context."""
    taken, tokens = 0, 0
    while taken < min(count, most):
        one = queue[(head + taken) & (len(queue) - 1)]
        if tokens + taken + context[one] + 1 > cap:
            break
        tokens += context[one]
        taken += 1
    return taken, tokens


@compiled
def walk_pipeline(
    arrival: Floats,
    prompt: Ints,
    output: Ints,
    prefills: bool,
    stages: int,
    prefill: Floats,
    decode: Floats,
    threshold: int,
    capacity: int,
    cap: int,
    targets: tuple[float, float],
    allowed: int,
    first_token: Floats,
    exits: Floats,
) -> int:
    """Fill exits, and first_token if the requests come as prompts (else first_token is arrival).

    A stage takes prompts before sequences; a decode batch is what its queue holds, so batches may merge behind a slow
    one. A token's successor enters stage 0 when it left the last one. Gives up when more than `allowed` miss either
    target (time to first token, time per token).

    What is due at one instant happens in the order in which it was made: arrivals; then ends of steps and awakenings.
    A stage that has nothing to do is woken by what comes; it starts after all that was due before its awakening.
    """
    num = len(arrival)
    ring = ring_size(num)
    prompts, prompt_head, num_prompts = (
        np.empty((stages, ring), np.int64), np.zeros(stages, np.int64), np.zeros(stages, np.int64),
    )  # fmt: skip
    queues, head, count = (
        np.empty((stages, ring), np.int64), np.zeros(stages, np.int64), np.zeros(stages, np.int64),
    )  # fmt: skip
    batch, size, is_prefill = (
        np.empty((stages, num), np.int64), np.zeros(stages, np.int64), np.zeros(stages, np.bool_),
    )  # fmt: skip
    waiting = np.zeros(stages, np.int64)  # context in each decode queue
    ends, order, busy = np.full(stages, IDLE), np.zeros(stages, np.int64), np.zeros(stages, np.bool_)
    context, left, group = prompt.copy(), output.copy(), np.zeros(num, np.int64)
    coming, done, groups, late_first, late_tokens, events = 0, 0, 0, 0, 0, 0
    while done < num:
        stage = 0
        for other in range(1, stages):
            if ends[other] < ends[stage] or (ends[other] == ends[stage] and order[other] < order[stage]):
                stage = other
        now = ends[stage]
        if coming < num and arrival[coming] <= now:
            now = arrival[coming]
            if prefills:
                push(prompts[0], prompt_head[0], num_prompts[0], coming)
                num_prompts[0] += 1
            else:
                push(queues[0], head[0], count[0], coming)
                count[0] += 1
                waiting[0] += context[coming]
            coming += 1
            if ends[0] == IDLE:
                ends[0], order[0] = now, events
                events += 1
            continue
        if busy[stage]:
            last, following = stage == stages - 1, (stage + 1) % stages
            for place in range(size[stage]):
                one = batch[stage, place]
                if is_prefill[stage] and not last:
                    push(prompts[following], prompt_head[following], num_prompts[following], one)
                    num_prompts[following] += 1
                    continue
                if is_prefill[stage]:
                    first_token[one] = now
                    late_first += now - arrival[one] >= targets[0]
                elif last:
                    context[one] += 1
                    left[one] -= 1
                    if left[one] == 0:
                        exits[one] = now
                        done += 1
                        late_tokens += (now - first_token[one]) / output[one] >= targets[1]
                        continue
                push(queues[following], head[following], count[following], one)
                count[following] += 1
                waiting[following] += context[one]
            if late_first > allowed or late_tokens > allowed:
                return REFUSED
            if ends[following] == IDLE and num_prompts[following] + count[following] > 0:
                ends[following], order[following] = now, events
                events += 1
        ends[stage], busy[stage] = IDLE, False
        if num_prompts[stage] + count[stage] > 0:
            is_prefill[stage] = num_prompts[stage] > 0 and waiting[stage] <= BACK_PRESSURE_TOKENS
            if is_prefill[stage]:
                groups += 1
                taken, tokens, squares = take_prompts(
                    prompts[stage], prompt_head[stage], num_prompts[stage], stage == 0, group, groups, prompt, capacity
                )
                for place in range(taken):
                    batch[stage, place] = prompts[stage, (prompt_head[stage] + place) & (ring - 1)]
                prompt_head[stage] = (prompt_head[stage] + taken) & (ring - 1)
                num_prompts[stage] -= taken
                step = prefill_ms(prefill, stages, tokens, squares)
            else:
                taken, tokens = take_sequences(queues[stage], head[stage], count[stage], context, cap, capacity)
                for place in range(taken):
                    batch[stage, place] = queues[stage, (head[stage] + place) & (ring - 1)]
                head[stage] = (head[stage] + taken) & (ring - 1)
                count[stage] -= taken
                waiting[stage] -= tokens
                step = decode_ms(decode, threshold, stages, tokens, taken)
            if not step > 0.0:
                return BAD_STEP
            if stage == 0:
                step += overhead_ms(tokens)
            size[stage] = taken
            ends[stage], order[stage], busy[stage] = now + step, events, True
            events += 1
    return FINISHED
