"""Compiled walks of the two phases that wait for nobody: prefill in stages, and decode in one stage.

Both simulate step by step, in the float operations that the rules state (docs/compat-simulators.md); what is skipped
between two changes of a batch is only the bookkeeping of its sequences.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from placement.compat.requests import Floats, Ints
from placement.compiled import compiled

OVERHEAD_MS = 2.0  # of the first stage, per step
OVERHEAD_PER_TOKEN_MS = 1e-4
STAGE_MS = 1.0  # of prefill: each stage pays it once per stage of the pipeline
LOOK_AHEAD_EVERY = 32  # batches between two counts of the requests that are late already


class Status(IntEnum):
    """How a walk ended."""

    FINISHED = 0
    REFUSED = 1  # more requests than allowed were late; the rest was not simulated
    BAD_STEP = 2  # the coefficients gave a step that takes no time or less


FINISHED, REFUSED, BAD_STEP = int(Status.FINISHED), int(Status.REFUSED), int(Status.BAD_STEP)


@compiled
def prefill_ms(coefficients: Floats, stages: int, tokens: int, squares: int) -> float:
    """One stage's time for a batch, without the first stage's overhead."""
    total = coefficients[0] + coefficients[1] * tokens + coefficients[2] * squares
    return float(total * (1.0 / stages) + STAGE_MS * stages)


@compiled
def decode_ms(coefficients: Floats, threshold: int, stages: int, context: int, num: int) -> float:
    """The same for one token of num sequences with context tokens before it; coefficients are [small, large]."""
    a, b, c = coefficients[0 if num < threshold else 1]
    return float((a + b * (context + num) + c * num) * (1.0 / stages))


@compiled
def overhead_ms(context: int) -> float:
    return OVERHEAD_MS + context * OVERHEAD_PER_TOKEN_MS


@compiled
def walk_prefill(
    arrival: Floats, prompt: Ints, coefficients: Floats, stages: int, capacity: int, first_token: Floats
) -> int:
    """Fill first_token: when each prompt leaves the last stage. Arrivals are sorted; no prompt is above capacity.

    Stage 0 takes the whole queue, first come first served, as far as the KV capacity goes. A batch stays together,
    so each later stage starts it when the batch is there and the one before it has left.
    """
    free = np.zeros(stages)  # when each stage has finished what it was given
    begin, num = 0, len(arrival)
    while begin < num:
        start = max(free[0], arrival[begin])
        end, tokens, squares = begin, 0, 0
        while end < num and arrival[end] <= start and tokens + prompt[end] <= capacity:
            tokens += prompt[end]
            squares += prompt[end] * prompt[end]
            end += 1
        stage = prefill_ms(coefficients, stages, tokens, squares)
        if not stage > 0.0:
            return BAD_STEP
        now = start + (stage + overhead_ms(tokens))
        free[0] = now
        for one in range(1, stages):
            now = max(now, free[one]) + stage
            free[one] = now
        first_token[begin:end] = now
        begin = end
    return FINISHED


@compiled
def ring_size(num: int) -> int:
    """Of a ring that holds num: a power of two, so that a place in it is found without a division."""
    size = 1
    while size < num:
        size *= 2
    return size


@compiled
def num_late(queue: Ints, head: int, count: int, ready: Floats, output: Ints, now: float, target: float) -> int:
    """Of the unfinished, how many would miss the target even if they ended now."""
    late = 0
    for place in range(head, head + count):
        one = queue[place & (len(queue) - 1)]
        if (now - ready[one]) / output[one] >= target:
            late += 1
    return late


@compiled
def walk_decode(
    ready: Floats,
    prompt: Ints,
    output: Ints,
    coefficients: Floats,
    threshold: int,
    cap: int,
    most: int,
    target: float,
    allowed: int,
    exits: Floats,
) -> int:
    """Fill exits: when the last token of each is out, for one stage. ready is sorted; prompt + output is within cap.

    A batch is the longest prefix of the queue with sum(context + 1) <= cap, at most `most` sequences. While a step
    runs, newcomers queue up; its survivors go behind them. Gives up when more than `allowed` have a time per token of
    target or more.
    """
    num, mask = len(ready), ring_size(len(ready)) - 1
    queue, context, final = np.empty(mask + 1, np.int64), np.empty(mask + 1, np.int64), np.empty(mask + 1, np.int64)
    head, count, batch, ran, coming, done, late, batches, now = 0, 0, 0, 0, 0, 0, 0, 0, ready[0]
    while done < num:
        while coming < num and ready[coming] <= now:
            place = (head + count) & mask
            queue[place], context[place], final[place] = coming, prompt[coming], prompt[coming] + output[coming]
            count += 1
            coming += 1
        for _ in range(batch):  # of the step that ended: out, or to the end of the queue
            one, reached, until = queue[head], context[head] + ran, final[head]
            head = (head + 1) & mask
            if reached < until:
                place = (head + count - 1) & mask
                queue[place], context[place], final[place] = one, reached, until
                continue
            count -= 1
            done += 1
            exits[one] = now
            late += (now - ready[one]) / output[one] >= target
        batches += 1
        if late > allowed:
            return REFUSED
        if allowed < num and batches % LOOK_AHEAD_EVERY == 0:
            late_already = num_late(queue, head, count, ready, output, now, target)
            if late + late_already > allowed:
                return REFUSED
        batch, tokens, most_now = 0, 0, min(count, most)
        if count == 0:
            if done < num:
                now = ready[coming]
            continue
        while batch < most_now:
            need = context[(head + batch) & mask]
            if tokens + batch + need + 1 > cap:
                break
            tokens += need
            batch += 1
        ran, changes = 1, 1
        if batch == count:  # the same batch runs again, as long as nobody comes or goes and it stays within the cap
            changes = final[head] - context[head]
            for place in range(head, head + count):
                changes = min(changes, final[place & mask] - context[place & mask])
        while True:
            step = decode_ms(coefficients, threshold, 1, tokens, batch) + overhead_ms(tokens)
            if not step > 0.0:
                return BAD_STEP
            now += step
            if ran == changes or tokens + 2 * batch > cap or (coming < num and ready[coming] <= now):
                break
            tokens += batch
            ran += 1
    return FINISHED
