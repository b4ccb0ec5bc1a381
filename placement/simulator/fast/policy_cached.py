"""`scheduling.routing` where prefixes are cached, compiled: what a prompt still takes differs from worker to worker.

Worker by worker, as the real code: there are as many chunks of a prompt to look for on each as take longer than that.
"""

from __future__ import annotations

import math

from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.board import CHUNK, DECODE_ROLE, LATENCY, PREFILL_ROLE, TOKENS, Board, Table
from placement.simulator.fast.directory import Directory, expected
from placement.simulator.fast.policy import stand_in
from placement.simulator.fast.records import Records


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
def _predicted_s(table: Table, column: int, prompt: int, cached: int) -> float:
    """`routing.predicted_ttft_s`."""
    rows = table.rows
    queued, chunk, own = int(rows[TOKENS, column]), int(rows[CHUNK, column]), prompt - cached
    base_s, token_s, context_s = rows[LATENCY, column], rows[LATENCY + 1, column], rows[LATENCY + 3, column]
    full = own // chunk
    rest = own - full * chunk
    steps = full + (1 if rest > 0 else 0)
    context = steps * cached + chunk * full * (full + 1) // 2 + (own if rest > 0 else 0)
    alone_s = steps * base_s + own * token_s + context * context_s
    more = (queued + own + chunk - 1) // chunk - (own + chunk - 1) // chunk
    return float(alone_s + (more * base_s + queued * (token_s + context_s)))


@compiled
def _least_prefill(
    w: Records, workers: Records, table: Table, directory: Directory, i: int, prompt: int
) -> int:  # fmt: skip
    """`_least_prefill`: the first, from whose turn it is on, of those with the least score."""
    if w.num_known[PREFILL_ROLE] < len(table.indices):
        stand_in(table, w.num_known[PREFILL_ROLE], prompt)
    n, best, least_s, least = len(table.indices), -1, math.inf, (0, 0, 0)
    for k in range(n):
        column = (w.turn + k) % n
        index = table.indices[column]
        cached = expected(directory, index, i, prompt)
        seconds = _predicted_s(table, column, prompt, cached)
        score = (int(table.rows[TOKENS, column]) + prompt - cached, -cached, workers[index].num_held)
        if best < 0 or seconds < least_s or (seconds == least_s and score < least):
            best, least_s, least = index, seconds, score
    return int(best)


@compiled
def _best_decode(
    w: Records, workers: Records, table: Table, directory: Directory, i: int, prompt: int, need: int, computes: bool
) -> int:
    """`_best_decode`."""
    if computes and w.num_known[DECODE_ROLE] < len(table.indices):
        stand_in(table, w.num_known[DECODE_ROLE], prompt)
    n, best, lack, least_s, least = len(table.indices), -1, 0, math.inf, (0, 0, 0)
    for k in range(n):
        column = (w.turn + k) % n
        index = table.indices[column]
        room = table.rooms[column] - need
        cached = expected(directory, index, i, prompt)
        seconds = _predicted_s(table, column, prompt, cached) if computes else 0.0
        lacks, score = -min(room, 0), (workers[index].num_held, -cached, -room)
        better = seconds < least_s or (seconds == least_s and score < least)
        if best < 0 or lacks < lack or (lacks == lack and better):
            best, lack, least_s, least = index, lacks, seconds, score
    return int(best)
