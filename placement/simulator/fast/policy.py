"""`scheduling.routing_policies` where nothing is cached, compiled: all workers at once.

What is least is found in two passes without branches over all workers, for wide registers, then among the few equals.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from placement.compiled import compiled_apart
from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.board import (
    BLOCK,
    CHUNK,
    DECODE_ROLE,
    LATENCY,
    PREFILL_ROLE,
    TOKENS,
    Table,
)
from placement.simulator.fast.predictions import burden, predicted_s
from placement.simulator.fast.records import Records
from placement.simulator.fast.soonest import least_ranked, surely_chosen
from scheduling.routing_policies import AS_LIGHT, AS_SOON

_NONE = (1 << 63) - 1


@compiled
def fast_prefill(w: Records, table: Table, prompt: int) -> int:
    """`_least_prefill`: its column."""
    if w.bounds[PREFILL_ROLE] == 1 and w.num_known[PREFILL_ROLE] == len(table.indices):
        column = surely_chosen(table, w.turn, prompt, w.chunk[PREFILL_ROLE])
        if column >= 0:
            return column
    _predict(w, table, PREFILL_ROLE, prompt)
    return _first_of(table, _least_rank(table, _least(table), AS_SOON), w.turn)


# ---- predictions ----


@compiled
def _own(prompt: float, chunk: float) -> tuple[float, float]:
    """`LatencyModel.prefill_s`: steps and context of a prompt."""
    full = np.floor(prompt / chunk)
    rest = prompt - full * chunk
    steps = full + (1.0 if rest > 0.0 else 0.0)
    return steps, chunk * full * (full + 1.0) / 2.0 + (prompt if rest > 0.0 else 0.0)


@compiled_apart
def _predict(w: Records, table: Table, role: int, prompt: int) -> None:
    """`predicted_ttft_s` for each worker of a table, as scores: whole numbers in the same order."""
    if w.num_known[role] < len(table.indices):
        stand_in(table, w.num_known[role], prompt)
    if w.chunk[role] > 0:
        _predict_all(table, float(prompt), float(w.chunk[role]))
    else:
        for i in range(len(table.indices)):
            table.scores[i] = _score(predicted_s(table, i, prompt, 0))


@compiled_apart
def _burdens(w: Records, table: Table, prompt: int) -> None:
    """`_burden` of each decode worker, as scores."""
    if w.num_known[DECODE_ROLE] < len(table.indices):
        stand_in(table, w.num_known[DECODE_ROLE], prompt)
    for i in range(len(table.indices)):
        table.scores[i] = _score(burden(table, i, prompt, 0))


@compiled
def _score(seconds: float) -> int:
    """A whole number; they are in the order of the seconds, and equal where those are."""
    bits: Any = np.float64(seconds + 0.0).view(np.int64)  # of two zeros the positive one
    return bits ^ ((bits >> 63) & _NONE)  # type: ignore[no-any-return]


@compiled
def _times(score: int, factor: float) -> int:
    """The score of so many times the number that this one stands for."""
    bits = np.int64(score ^ ((score >> 63) & _NONE))
    return _score(bits.view(np.float64) * factor)


@compiled
def _predict_all(table: Table, prompt: float, chunk: float) -> None:
    """The same where one chunk is that of all, and without a division for each."""
    steps, context = _own(prompt, chunk)
    own_steps, inverse = np.floor((prompt + chunk - 1.0) / chunk), 1.0 / chunk
    more_tokens = prompt + chunk - 0.5  # half a token from where the next step begins: rounding cannot reach it
    waiting, base, scores = table.rows[TOKENS], table.rows[LATENCY], table.scores
    of_token, of_context = table.rows[LATENCY + 1], table.rows[LATENCY + 3]
    for i in range(len(table.indices)):
        queued, base_s, token_s, context_s = waiting[i], base[i], of_token[i], of_context[i]
        more = np.floor((queued + more_tokens) * inverse) - own_steps
        alone_s = steps * base_s + prompt * token_s + context * context_s
        scores[i] = _score(alone_s + (more * base_s + queued * (token_s + context_s)))


@compiled_apart
def stand_in(table: Table, num_known: int, prompt: int) -> None:
    """`_as_fast_as_others`: those unknown get the latency of the median of those known, or nothing if there is none."""
    rows, known = table.rows, table.known
    median = _median(table, num_known // 2, prompt) if num_known > 0 else -1
    for i in range(len(known)):
        if known[i] == 0:
            for k in range(LATENCY, LATENCY + 4):
                rows[k, i] = 0.0 if median < 0 else rows[k, median]


@compiled_apart
def _median(table: Table, rank: int, prompt: int) -> int:
    """The column that `rank` of those known come before, in order of a prompt's seconds; ties in order."""
    rows, known, scores = table.rows, table.known, table.scores
    steps, context = _own(float(prompt), rows[CHUNK, 0])
    for i in range(len(known)):
        scores[i] = _score(
            steps * rows[LATENCY, i] + float(prompt) * rows[LATENCY + 1, i] + context * rows[LATENCY + 3, i]
        )
    low, high = -_NONE, _NONE
    while low < high:  # the least score that more than `rank` do not exceed
        middle, below = (low & high) + ((low ^ high) >> 1), 0
        for i in range(len(known)):
            below += known[i] if scores[i] <= middle else 0
        if below > rank:
            high = middle
        else:
            low = middle + 1
    for i in range(len(known)):
        rank -= known[i] if scores[i] < low else 0
    for i in range(len(known)):
        if known[i] == 1 and scores[i] == low:
            if rank == 0:
                return i
            rank -= 1
    return -1


# ---- the least of them ----


@compiled
def _least(table: Table) -> int:
    """The least score; `table.least` of each block."""
    scores, least = table.scores, table.least
    all_least = _NONE
    for block in range(len(least)):
        of_block = _NONE
        for i in range(block * BLOCK, (block + 1) * BLOCK):
            of_block = min(of_block, scores[i])
        least[block] = of_block
        all_least = min(all_least, of_block)
    return all_least


@compiled
def _least_rank(table: Table, least: int, factor: float) -> int:
    """`_as_soon_as_any`, `_least_burdened`: of those that are as good as the least the scores are now their ranks; the
    least of these."""
    scores, ranks, limit = table.scores, table.ranks, _times(least, factor)
    for i in range(len(table.indices)):
        scores[i] = ranks[i] if scores[i] <= limit else _NONE
    return _least(table)


@compiled
def _first_of(table: Table, score: int, turn: int) -> int:
    """The column of this score, the least: of the least rank, then the first of those from `turn` on, and round."""
    scores, least, n = table.scores, table.least, len(table.indices)
    best, best_rank, best_after = -1, 0, 0
    start = turn % n
    for block in range(len(least)):
        if least[block] != score:
            continue
        for i in range(block * BLOCK, min((block + 1) * BLOCK, n)):
            if scores[i] != score:
                continue
            rank, after = table.ranks[i], i - start if i >= start else i - start + n
            if best < 0 or rank < best_rank or (rank == best_rank and after < best_after):
                best, best_rank, best_after = i, rank, after
    return best


@compiled
def fast_decode(w: Records, table: Table, prompt: int, need: int, computes: bool) -> int:
    """`_best_decode`: its column."""
    if not computes:
        column = least_ranked(table, w.turn)
        if table.rooms[column] >= need:
            return column
    scores, rooms, n = table.scores, table.rooms, len(table.indices)
    ranks = scores if computes else table.ranks
    if computes:
        _burdens(w, table, prompt)
    most = rooms[0]
    for i in range(n):
        most = max(most, rooms[i])
    enough = min(need, most)  # nobody has room: who lacks least
    for i in range(n):
        scores[i] = ranks[i] if rooms[i] >= enough else _NONE
    score = _least(table)
    if computes:
        score = _least_rank(table, score, AS_LIGHT)
    return _first_of(table, score, w.turn)
