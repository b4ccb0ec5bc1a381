"""`scheduling.routing_policies`, compiled: whom the router chooses. `unsupported` saw to it that every worker can hold
all."""

from __future__ import annotations

from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.board import Board
from placement.simulator.fast.directory import Directory
from placement.simulator.fast.policy import fast_decode, fast_prefill
from placement.simulator.fast.policy_cached import best_decode, instead_of_trip, least_prefill, note_cached
from placement.simulator.fast.records import Records


@compiled
def choose(
    w: Records, workers: Records, board: Board, directory: Directory | None, i: int, prompt: int, output: int
) -> tuple[int, int]:  # fmt: skip
    """`LeastPredictedLatency.choose` or `RoundRobin.choose`: (prefill worker or -1, decode worker)."""
    turn, prefill = w.turn, -1
    w.turn += 1
    prefills, decodes = board.prefill, board.decode
    splits = len(prefills.indices) > 0
    if w.round_robin == 1:
        if splits and prompt > w.local:
            prefill = int(prefills.indices[turn % len(prefills.indices)])
        return prefill, int(decodes.indices[turn % len(decodes.indices)])
    size = workers[decodes.indices[0]].size
    need = (prompt + min(output, w.growth) + size - 1) // size
    if directory is not None:
        note_cached(decodes, directory, i, prompt)
        if splits:
            note_cached(prefills, directory, i, prompt)
            prefill = least_prefill(w, workers, prefills, prompt)
        decode = best_decode(w, workers, decodes, prompt, need, not splits)
    else:
        if splits:
            prefill = fast_prefill(w, prefills, prompt)
        decode = fast_decode(w, decodes, prompt, need, not splits)
    if splits and w.local > 0:
        here = instead_of_trip(w, workers, board, prompt, need, prefill, decode)
        if here >= 0:
            return -1, int(decodes.indices[here])
    return int(prefills.indices[prefill]) if splits else -1, int(decodes.indices[decode])
