"""`scheduling.routing`, compiled: whom the router chooses. `unsupported` saw to it that every worker can hold all."""

from __future__ import annotations

import numpy as np

from placement.compiled import compiled_lean as compiled
from placement.simulator.fast.board import (
    CHUNK,
    DECODE_ROLE,
    HELD,
    LATENCY,
    PREFILL_ROLE,
    ROOM,
    TOKENS,
    Board,
    is_known,
)
from placement.simulator.fast.records import Records


@compiled
def choose(w: Records, workers: Records, board: Board, prompt: int, output: int) -> tuple[int, int]:
    """`LeastPredictedLatency.choose` or `RoundRobin.choose`: (prefill worker or -1, decode worker)."""
    turn, prefill = w.turn, -1
    w.turn += 1
    if w.round_robin == 1:
        if prompt > w.local and len(board.prefill_indices) > 0:
            prefill = int(board.prefill_indices[turn % len(board.prefill_indices)])
        return prefill, int(board.decode_indices[turn % len(board.decode_indices)])
    if prompt > w.local and len(board.prefill_indices) > 0:
        prefill = _least_prefill(w, workers, board, prompt)
    size = workers[board.decode_indices[0]].size
    need = (prompt + min(output, w.growth) + size - 1) // size
    return prefill, _best_decode(w, workers, board, prompt, need, prefill < 0)


@compiled
def _prefill_s(table: Records, i: int, prompt: float, chunk: float) -> float:
    """`LatencyModel.prefill_s`."""
    full = np.floor(prompt / chunk)
    rest = prompt - full * chunk
    steps = full + (1.0 if rest > 0.0 else 0.0)
    context = chunk * full * (full + 1.0) / 2.0 + (prompt if rest > 0.0 else 0.0)
    return float(steps * table[LATENCY, i] + prompt * table[LATENCY + 1, i] + context * table[LATENCY + 3, i])


@compiled
def _predict(table: Records, seconds: Records, prompt: float) -> None:
    """`predicted_ttft_s` for each worker of a table, in `seconds`; without branches, for wide registers."""
    for i in range(table.shape[1]):
        chunk, queued = table[CHUNK, i], table[TOKENS, i]
        joint_steps = np.floor((queued + prompt + chunk - 1.0) / chunk)
        own_steps = np.floor((prompt + chunk - 1.0) / chunk)
        base_s = table[LATENCY, i]
        waits_s = (joint_steps - own_steps) * base_s + queued * (table[LATENCY + 1, i] + table[LATENCY + 3, i])
        seconds[i] = _prefill_s(table, i, prompt, chunk) + waits_s


@compiled
def _stand_in(
    workers: Records, table: Records, indices: Records, num_known: int, seconds: Records, prompt: int
) -> None:
    """`_as_fast_as_others`: those unknown get the latency of the median of those known, or nothing if there is none."""
    n, median, chunk = len(indices), -1, table[CHUNK, 0]
    for i in range(n):
        if is_known(workers[indices[i]]):
            seconds[i] = _prefill_s(table, i, float(prompt), chunk)
    for i in range(n):  # the one with num_known // 2 known ones before it, ties in order, as a stable sort has it
        if not is_known(workers[indices[i]]):
            continue
        before = 0
        for k in range(n):
            if (seconds[k] < seconds[i] or (seconds[k] == seconds[i] and k < i)) and is_known(workers[indices[k]]):
                before += 1
        if before == num_known // 2:
            median = i
            break
    for i in range(n):
        if not is_known(workers[indices[i]]):
            for k in range(LATENCY, LATENCY + 4):
                table[k, i] = 0.0 if median < 0 else table[k, median]


@compiled
def _least_prefill(w: Records, workers: Records, board: Board, prompt: int) -> int:
    table, n, seconds = board.prefill, len(board.prefill_indices), board.seconds
    if w.num_known[PREFILL_ROLE] < n:
        _stand_in(workers, table, board.prefill_indices, w.num_known[PREFILL_ROLE], seconds, prompt)
    _predict(table, seconds, float(prompt))
    start = w.turn % n
    best = start
    for k in range(start + 1, start + n):
        i = k if k < n else k - n
        if seconds[i] > seconds[best]:
            continue
        better = seconds[i] < seconds[best]
        if not better:
            tokens, best_tokens = table[TOKENS, i], table[TOKENS, best]
            better = tokens < best_tokens or (tokens == best_tokens and table[HELD, i] < table[HELD, best])
        if better:
            best = i
    return int(board.prefill_indices[best])


@compiled
def _best_decode(w: Records, workers: Records, board: Board, prompt: int, need: int, computes: bool) -> int:
    table, n, seconds = board.decode, len(board.decode_indices), board.seconds
    if computes:
        if w.num_known[DECODE_ROLE] < n:
            _stand_in(workers, table, board.decode_indices, w.num_known[DECODE_ROLE], seconds, prompt)
        _predict(table, seconds, float(prompt))
    else:
        for i in range(n):
            seconds[i] = 0.0
    start = w.turn % n
    best = start
    best_lack = max(0.0, need - table[ROOM, best])
    for k in range(start + 1, start + n):
        i = k if k < n else k - n
        lack = max(0.0, need - table[ROOM, i])
        if lack > best_lack:
            continue
        better = lack < best_lack or seconds[i] < seconds[best]
        if not better and seconds[i] == seconds[best]:
            held, best_held = table[HELD, i], table[HELD, best]
            better = held < best_held or (held == best_held and table[ROOM, i] > table[ROOM, best])
        if better:
            best, best_lack = i, lack
    return int(board.decode_indices[best])
