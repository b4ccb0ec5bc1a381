"""A choice that looks at few workers: whoever comes first by rank, where that is surely whom `policy`'s passes find.

Ranks are kept from event to event, with the least of each block of columns. Among those of the least rank the first is
chosen of whom it is told that the prompt starts there as soon as anywhere; that takes bounds of what the soonest takes,
not the soonest itself.
"""

from __future__ import annotations

import math

from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.board import BLOCK, LATENCY, NODES, Table
from placement.simulator.fast.predictions import predicted_s
from scheduling.routing_policies import AS_SOON

_SURELY = 1.0 - 1e-9  # rounding is a millionth of that


@compiled
def _ranked(table: Table, start: int, rank: int) -> int:
    """The first column of this rank from `start` on; -1 for none."""
    i, n = start, len(table.indices)
    while i < n:
        if table.of_block[i // BLOCK] != rank:
            i = (i // BLOCK + 1) * BLOCK
        elif table.ranks[i] == rank:
            return i
        else:
            i += 1
    return -1


@compiled
def _least_rank(table: Table) -> int:
    rank = table.of_block[0]
    for block in range(1, len(table.of_block)):
        rank = min(rank, table.of_block[block])
    return int(rank)


@compiled
def least_ranked(table: Table, turn: int) -> int:
    """Of those of the least rank the first from `turn` on, and round."""
    rank = _least_rank(table)
    found = _ranked(table, turn % len(table.indices), rank)
    return found if found >= 0 else _ranked(table, 0, rank)


@compiled
def surely_chosen(table: Table, turn: int, prompt: int, chunk: float) -> int:
    """The prefill worker that `policy` chooses; -1: bounds do not tell."""
    least_s, most_s = _bounds_s(table, prompt, chunk)
    rank, start = _least_rank(table), turn % len(table.indices)
    for begin, end in ((start, len(table.indices)), (0, start)):
        column = _ranked(table, begin, rank)
        while 0 <= column < end:
            wait_s = predicted_s(table, column, prompt, 0)
            if wait_s <= least_s * AS_SOON * _SURELY:
                return column
            if wait_s <= most_s * AS_SOON:
                return -1
            column = _ranked(table, column + 1, rank)
    return -1


@compiled
def _bounds_s(table: Table, prompt: int, chunk: float) -> tuple[float, float]:
    """Between which the least lies that any worker takes to the prompt's first token.

    Of prompts of as many steps a worker takes seconds on a straight line. So the least of all, of a prompt alone, is on
    or above the line between two lengths at which it is known; and nobody takes less for having others before.
    """
    steps = math.ceil(prompt / chunk)
    if steps > len(table.nodes):
        return 0.0, math.inf
    at = (prompt / chunk - (steps - 1.0)) * (NODES - 1)
    node = min(int(at), NODES - 2)
    one, other = _soonest(table, steps, node, chunk), _soonest(table, steps, node + 1, chunk)
    one_s, other_s = _alone_s(table, one, steps, node, chunk), _alone_s(table, other, steps, node + 1, chunk)
    most_s = min(predicted_s(table, one, prompt, 0), predicted_s(table, other, prompt, 0))
    return one_s + (other_s - one_s) * (at - node), most_s


@compiled
def _alone_s(table: Table, column: int, steps: int, node: int, chunk: float) -> float:
    """`LatencyModel.prefill_s` of so many steps, the last of which is `node` parts of one."""
    prompt = chunk * (steps - 1.0 + node / (NODES - 1.0))
    context = chunk * (steps - 1.0) * steps / 2.0 + prompt
    rows = table.rows
    return float(
        steps * rows[LATENCY, column] + prompt * rows[LATENCY + 1, column] + context * rows[LATENCY + 3, column]
    )


@compiled
def _soonest(table: Table, steps: int, node: int, chunk: float) -> int:
    """Who takes least for it."""
    soonest = int(table.nodes[steps - 1, node])
    if soonest < 0:
        least_s = math.inf
        for column in range(len(table.indices)):
            alone_s = _alone_s(table, column, steps, node, chunk)
            if alone_s < least_s:
                soonest, least_s = column, alone_s
        table.nodes[steps - 1, node] = soonest
    return soonest
