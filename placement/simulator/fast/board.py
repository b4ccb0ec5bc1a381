"""What the router's policy reads of all workers of a role, side by side: a row per quantity, a column per worker.

A choice looks at every worker; from their records that took a quarter of a run. Whole numbers are exact as floats here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from placement.compiled import compiled_lean as compiled
from placement.simulator.fast.records import Records

PREFILL_ROLE, DECODE_ROLE = 0, 1
TOKENS, ROOM, HELD, CHUNK, LATENCY = range(5)  # from LATENCY on the four coefficients, those of a stand-in if unknown
_NUM_ROWS = LATENCY + 4


class Board(NamedTuple):
    """`prefill` and `decode`: [rows, workers of the role]; their indices in the cluster; room for predictions."""

    prefill: Any
    decode: Any
    prefill_indices: Any
    decode_indices: Any
    seconds: Any


def board_of(world: Records, workers: Records) -> Board:
    """From workers that have nothing yet; gives each its column."""
    tables, indices = [], []
    for role in (PREFILL_ROLE, DECODE_ROLE):
        of_role = np.flatnonzero(workers["role"] == role)
        workers["column"][of_role] = np.arange(len(of_role))
        table = np.zeros((_NUM_ROWS, len(of_role)))
        table[ROOM], table[CHUNK] = workers["num_blocks"][of_role], workers["budget"][of_role]
        table[LATENCY:] = workers["coefficients"][of_role].T
        world["num_known"][role] = (workers["coefficients"][of_role] != 0.0).any(axis=1).sum()
        tables.append(table)
        indices.append(of_role)
    return Board(tables[0], tables[1], indices[0], indices[1], np.empty(len(workers)))


@compiled
def note_load(worker: Records, board: Board) -> None:
    """`WorkerLedger.load`: uncomputed tokens, free blocks. What it sums over the news is kept up to date instead."""
    table = board.prefill if worker.role == PREFILL_ROLE else board.decode
    if worker.has_status == 0:
        tokens, room = worker.ledger_tokens, worker.num_blocks - worker.ledger_blocks
    else:
        tokens = min(worker.ledger_tokens, worker.reported_uncomputed + worker.news_tokens)
        room = worker.reported_free - worker.news_room - worker.reported_promised
    table[TOKENS, worker.column] = tokens
    table[ROOM, worker.column] = room
    table[HELD, worker.column] = worker.num_held


@compiled
def is_known(worker: Records) -> bool:
    """`LatencyCoefficients.known`."""
    c = worker.coefficients
    return bool(c[0] != 0.0 or c[1] != 0.0 or c[2] != 0.0 or c[3] != 0.0)


@compiled
def note_latency(w: Records, worker: Records, board: Board) -> None:
    """The status that was on its way tells of another latency."""
    w.num_known[worker.role] -= 1 if is_known(worker) else 0
    for k in range(4):
        worker.coefficients[k] = worker.sent_coefficients[k]
    w.num_known[worker.role] += 1 if is_known(worker) else 0
    table = board.prefill if worker.role == PREFILL_ROLE else board.decode
    for k in range(4):
        table[LATENCY + k, worker.column] = worker.coefficients[k]
