"""What the router's policy reads of all workers of a role, side by side: a row per quantity, a column per worker.

A choice looks at every worker; from their records that took a quarter of a run. Whole numbers are exact as floats here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.records import Records

PREFILL_ROLE, DECODE_ROLE = 0, 1
TOKENS, SEQUENCES, CONTEXT, CHUNK = range(4)
LATENCY = 4  # from here on the four coefficients, those of a stand-in if unknown
_NUM_ROWS = LATENCY + 4
BLOCK = 16  # columns of which the least is noted together
NODES, _MOST_STEPS = 33, 16  # lengths of a prompt's last step, and its steps, for which the soonest are noted
_NONE = (1 << 63) - 1
_FEW = 32  # workers among whom looking at all takes no longer
_FIELD = 1 << 28  # a rank is two whole numbers in one
MOST_BLOCKS = _FIELD - 1


class Table(NamedTuple):
    """Workers of one role, and room for a choice among them."""

    rows: Any  # [rows, workers] floats
    rooms: Any  # [workers] free blocks, whole numbers
    known: Any  # [workers] whether its latency is
    ranks: Any  # [workers, to whole blocks] of two that are predicted the same, the smaller is chosen: whole numbers
    of_block: Any  # [blocks] the least of each block's ranks
    indices: Any  # [workers] in the cluster
    scores: Any  # [workers, to whole blocks]: what is chosen by, the least
    least: Any  # [blocks]
    nodes: Any  # [steps, NODES] who takes least for prompts of some lengths (`soonest`); -1: not known
    # [workers]: the same where workers are looked at one by one
    cached: Any  # tokens of a prompt
    waits_s: Any


class Board(NamedTuple):
    """Of each role."""

    prefill: Table
    decode: Table


def board_of(world: Records, workers: Records) -> Board:
    """From workers that have nothing yet; gives each its column."""
    return Board(_table(world, workers, PREFILL_ROLE), _table(world, workers, DECODE_ROLE))


def _table(world: Records, workers: Records, role: int) -> Table:
    of_role = np.flatnonzero(workers["role"] == role)
    workers["column"][of_role] = np.arange(len(of_role))
    rows = np.zeros((_NUM_ROWS, len(of_role)))
    rows[CHUNK] = workers["budget"][of_role]
    rows[LATENCY:] = workers["coefficients"][of_role].T
    known = (workers["coefficients"][of_role] != 0.0).any(axis=1).astype(np.int64)
    world["num_known"][role] = known.sum()
    chunks = np.unique(workers["budget"][of_role])
    world["chunk"][role] = chunks[0] if len(chunks) == 1 else 0
    world["bounds"][role] = len(chunks) == 1 and len(of_role) > _FEW and (workers["prior"][of_role] >= 0.0).all()
    rooms = workers["num_blocks"][of_role].astype(np.int64)
    blocks = -(-len(of_role) // BLOCK)
    ranks, scores = np.full(blocks * BLOCK, _NONE), np.full(blocks * BLOCK, _NONE)
    ranks[: len(of_role)] = 0 if role == PREFILL_ROLE else _FIELD - rooms
    of_block = ranks.reshape(blocks, BLOCK).min(axis=1)
    nodes = np.full((_MOST_STEPS, NODES), -1)
    num, least = len(of_role), np.zeros(blocks, np.int64)
    cached, waits_s = np.zeros(num, np.int64), np.zeros(num)
    return Table(rows, rooms, known, ranks, of_block, of_role, scores, least, nodes, cached, waits_s)


@compiled
def note_load(worker: Records, board: Board) -> None:
    """`WorkerLedger.load`: uncomputed tokens, free blocks. What it sums over the news is kept up to date instead."""
    if worker.has_status == 0:
        tokens, free, promised = worker.ledger_tokens, worker.num_blocks - worker.ledger_blocks, 0
    else:
        tokens = min(worker.ledger_tokens, worker.reported_uncomputed + worker.news_tokens)
        free, promised = worker.reported_free - worker.news_room, worker.reported_promised
    room = free - promised
    if worker.role == PREFILL_ROLE:  # fewest tokens, then fewest sequences
        table, rank = board.prefill, tokens * _FIELD + worker.num_held
    else:  # fewest sequences, then most room
        table, rank = board.decode, 2 * _FIELD * worker.num_held + _FIELD - room
    table.rows[TOKENS, worker.column] = tokens
    table.rows[SEQUENCES, worker.column] = worker.num_held
    table.rows[CONTEXT, worker.column] = max(0, (worker.num_blocks - free) * worker.size - tokens)
    table.rooms[worker.column] = room
    _note_rank(table, worker.column, rank)


@compiled
def _note_rank(table: Table, column: int, rank: int) -> None:
    ranks, block = table.ranks, column // BLOCK
    least = min(rank, table.of_block[block])
    if ranks[column] == table.of_block[block]:
        least = ranks[column] = rank
        for i in range(block * BLOCK, (block + 1) * BLOCK):
            least = min(least, ranks[i])
    ranks[column], table.of_block[block] = rank, least


@compiled
def is_known(worker: Records) -> bool:
    """`LatencyCoefficients.known`."""
    c = worker.coefficients
    return bool(c[0] != 0.0 or c[1] != 0.0 or c[2] != 0.0 or c[3] != 0.0)


@compiled
def forget_nodes(board: Board) -> None:
    """Latencies have changed."""
    board.prefill.nodes[:] = -1


@compiled
def note_latency(w: Records, worker: Records, board: Board) -> None:
    """The status that was on its way tells of another latency."""
    if worker.observes == 0:
        return
    table = board.prefill if worker.role == PREFILL_ROLE else board.decode
    column = worker.column
    w.num_known[worker.role] -= table.known[column]
    for k in range(4):
        worker.coefficients[k] = table.rows[LATENCY + k, column] = worker.sent_coefficients[k]
    table.known[column] = 1 if is_known(worker) else 0
    w.num_known[worker.role] += table.known[column]
