"""`scheduling.routing_policies` where what a prompt still takes differs from worker to worker, compiled.

Worker by worker, as the real code: there are as many chunks of a prompt to look for on each as take longer than that.
"""

from __future__ import annotations

import math

from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.board import DECODE_ROLE, LATENCY, PREFILL_ROLE, TOKENS, Board, Table
from placement.simulator.fast.directory import Directory, expected
from placement.simulator.fast.policy import stand_in
from placement.simulator.fast.predictions import burden, joined_step_s, predicted_s
from placement.simulator.fast.records import Records
from scheduling.routing_policies import AS_LIGHT, AS_SOON

_ANY = 1 << 62  # tokens or blocks: more than there are
_WAIT, _BURDEN, _NOTHING = range(3)  # what workers are chosen by


@compiled
def note_cached(table: Table, directory: Directory, i: int, prompt: int) -> None:
    """What of a prompt is cached on each worker."""
    for column in range(len(table.indices)):
        table.cached[column] = expected(directory, table.indices[column], i, prompt)


@compiled
def _look(table: Table, prompt: int, least_room: int, most_lacking: int, by: int) -> float:
    """What those are chosen by that have so much room and lack no more; up to where that is as little as any's
    (`_as_soon_as_any`, `_least_burdened`). Without any there, -1."""
    least_s = math.inf
    for column in range(len(table.indices)):
        cached, wait_s = table.cached[column], math.inf
        if table.rooms[column] >= least_room and prompt - cached <= most_lacking:
            wait_s = 0.0
            if by == _WAIT:
                wait_s = predicted_s(table, column, prompt, cached)
            elif by == _BURDEN:
                wait_s = burden(table, column, prompt, cached)
        table.waits_s[column] = wait_s
        least_s = min(least_s, wait_s)
    return -1.0 if least_s == math.inf else least_s * (AS_LIGHT if by == _BURDEN else AS_SOON)


@compiled
def least_prefill(w: Records, workers: Records, table: Table, prompt: int) -> int:
    """`_least_prefill`: the column of the first, from whose turn it is on, of those with the least score."""
    if w.num_known[PREFILL_ROLE] < len(table.indices):
        stand_in(table, w.num_known[PREFILL_ROLE], prompt)
    limit_s = _look(table, prompt, -_ANY, _ANY, _WAIT)
    n, best, least = len(table.indices), -1, (0, 0, 0)
    for k in range(n):
        column = (w.turn + k) % n
        if table.waits_s[column] > limit_s:
            continue
        cached, sequences = table.cached[column], int(workers[table.indices[column]].num_held)
        score = (int(table.rows[TOKENS, column]) + prompt - cached, -cached, sequences)
        if best < 0 or score < least:
            best, least = column, score
    return best


@compiled
def best_decode(w: Records, workers: Records, table: Table, prompt: int, need: int, computes: bool) -> int:
    """`_best_decode`: its column."""
    most = -_ANY
    for room in table.rooms:
        most = max(most, room)
    return _best(w, workers, table, prompt, min(need, most), _ANY, computes)


@compiled
def _best(
    w: Records, workers: Records, table: Table, prompt: int, least_room: int, most_lacking: int, computes: bool
) -> int:  # fmt: skip
    if computes and w.num_known[DECODE_ROLE] < len(table.indices):
        stand_in(table, w.num_known[DECODE_ROLE], prompt)
    limit_s = _look(table, prompt, least_room, most_lacking, _BURDEN if computes else _NOTHING)
    n, best, least = len(table.indices), -1, (0, 0, 0)
    for k in range(n):
        column = (w.turn + k) % n
        if table.waits_s[column] > limit_s:
            continue
        sequences = int(workers[table.indices[column]].num_held)
        score = (sequences, -table.cached[column], -table.rooms[column])
        if best < 0 or score < least:
            best, least = column, score
    return best


@compiled
def _as_fast_as(others: Table, other: int, table: Table, column: int) -> None:
    """`_as_fast_as`, until `stand_in`."""
    for k in range(LATENCY, LATENCY + 4):
        table.rows[k, column] = others.rows[k, other]


@compiled
def instead_of_trip(
    w: Records, workers: Records, board: Board, prompt: int, need: int, prefill: int, decode: int
) -> int:  # fmt: skip
    """`_instead_of_trip`: its column, or -1."""
    prefills, decodes = board.prefill, board.decode
    here = _best(w, workers, decodes, prompt, need, w.local, True)
    if here < 0:
        return -1
    if w.num_known[DECODE_ROLE] == 0:
        _as_fast_as(prefills, prefill, decodes, here)
        _as_fast_as(prefills, prefill, decodes, decode)
    elif w.num_known[PREFILL_ROLE] == 0:
        _as_fast_as(decodes, here, prefills, prefill)
    trip_s = predicted_s(prefills, prefill, prompt, prefills.cached[prefill])
    trip = trip_s * joined_step_s(decodes, decode, prompt)
    return here if burden(decodes, here, prompt, decodes.cached[here]) <= trip * AS_LIGHT else -1
