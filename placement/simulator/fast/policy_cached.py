"""`scheduling.routing` where prefixes are cached, compiled: what a prompt still takes differs from worker to worker.

Worker by worker, as the real code: there are as many chunks of a prompt to look for on each as take longer than that.
"""

from __future__ import annotations

import math

from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.board import DECODE_ROLE, PREFILL_ROLE, TOKENS, Board, Table
from placement.simulator.fast.directory import Directory, expected
from placement.simulator.fast.policy import stand_in
from placement.simulator.fast.predictions import burden, predicted_s
from placement.simulator.fast.records import Records
from scheduling.routing import AS_LIGHT, AS_SOON

_ANY_ROOM = -(1 << 62)
_WAIT, _BURDEN, _NOTHING = range(3)  # what workers are chosen by


@compiled
def choose_cached(
    w: Records, workers: Records, board: Board, directory: Directory, i: int, prompt: int, output: int
) -> tuple[int, int]:  # fmt: skip
    """`LeastPredictedLatency.choose` or `RoundRobin.choose`: (prefill worker or -1, decode worker)."""
    turn, prefill = w.turn, -1
    w.turn += 1
    prefills, decodes = board.prefill, board.decode
    splits = prompt > w.local and len(prefills.indices) > 0
    if w.round_robin == 1:
        if splits:
            prefill = int(prefills.indices[turn % len(prefills.indices)])
        return prefill, int(decodes.indices[turn % len(decodes.indices)])
    if splits:
        prefill = _least_prefill(w, workers, prefills, directory, i, prompt)
    size = workers[decodes.indices[0]].size
    need = (prompt + min(output, w.growth) + size - 1) // size
    return prefill, _best_decode(w, workers, decodes, directory, i, prompt, need, prefill < 0)


@compiled
def _look(
    table: Table, directory: Directory, i: int, prompt: int, least_room: int, by: int
) -> float:  # fmt: skip
    """What is cached on each worker, and what those with that much room are chosen by; up to where that is as little
    as any's (`_as_soon_as_any`, `_least_burdened`)."""
    least_s = math.inf
    for column in range(len(table.indices)):
        cached = expected(directory, table.indices[column], i, prompt)
        wait_s = math.inf
        if table.rooms[column] >= least_room:
            wait_s = 0.0
            if by == _WAIT:
                wait_s = predicted_s(table, column, prompt, cached)
            elif by == _BURDEN:
                wait_s = burden(table, column, prompt, cached)
        directory.cached[column], directory.waits_s[column] = cached, wait_s
        least_s = min(least_s, wait_s)
    return least_s * (AS_LIGHT if by == _BURDEN else AS_SOON)


@compiled
def _least_prefill(
    w: Records, workers: Records, table: Table, directory: Directory, i: int, prompt: int
) -> int:  # fmt: skip
    """`_least_prefill`: the first, from whose turn it is on, of those with the least score."""
    if w.num_known[PREFILL_ROLE] < len(table.indices):
        stand_in(table, w.num_known[PREFILL_ROLE], prompt)
    limit_s = _look(table, directory, i, prompt, _ANY_ROOM, _WAIT)
    n, best, least = len(table.indices), -1, (0, 0, 0)
    for k in range(n):
        column = (w.turn + k) % n
        if directory.waits_s[column] > limit_s:
            continue
        index, cached = table.indices[column], directory.cached[column]
        score = (int(table.rows[TOKENS, column]) + prompt - cached, -cached, int(workers[index].num_held))
        if best < 0 or score < least:
            best, least = index, score
    return int(best)


@compiled
def _best_decode(
    w: Records, workers: Records, table: Table, directory: Directory, i: int, prompt: int, need: int, computes: bool
) -> int:
    """`_best_decode`."""
    if computes and w.num_known[DECODE_ROLE] < len(table.indices):
        stand_in(table, w.num_known[DECODE_ROLE], prompt)
    most = _ANY_ROOM
    for room in table.rooms:
        most = max(most, room)
    limit_s = _look(table, directory, i, prompt, min(need, most), _BURDEN if computes else _NOTHING)
    n, best, least = len(table.indices), -1, (0, 0, 0)
    for k in range(n):
        column = (w.turn + k) % n
        if directory.waits_s[column] > limit_s:
            continue
        index = table.indices[column]
        score = (int(workers[index].num_held), -directory.cached[column], need - table.rooms[column])
        if best < 0 or score < least:
            best, least = index, score
    return int(best)
