"""`scheduling.ledger`, compiled: what the router knows of its workers."""

from __future__ import annotations

from placement.compiled import compiled_apart
from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.board import Board, forget_nodes, note_latency, note_load
from placement.simulator.fast.records import NEVER, Records
from scheduling.ledger import ON_THE_WAY_S


@compiled
def hold(
    workers: Records, seqs: Records, board: Board, s: int, index: int, now_s: float, uncomputed: int, blocks: int
) -> None:
    """`WorkerLedger.hold`."""
    worker, seq = workers[index], seqs[s]
    seq.held, seq.worker, seq.sent_s, seq.uncomputed, seq.room = 1, index, now_s, uncomputed, blocks
    seq.settled_s = NEVER
    worker.ledger_tokens += uncomputed
    worker.ledger_blocks += blocks
    worker.num_held += 1
    seq.news, seq.news_prev, seq.news_next = 1, -1, worker.news_head
    if worker.news_head >= 0:
        seqs[worker.news_head].news_prev = s
    worker.news_head = s
    worker.news_room += blocks
    worker.news_tokens += uncomputed
    note_load(worker, board)


@compiled
def _no_news(worker: Records, seqs: Records, s: int) -> None:
    seq = seqs[s]
    if seq.news == 0:
        return
    seq.news = 0
    worker.news_room -= seq.room
    if seq.sent_s >= worker.known_s:
        worker.news_tokens -= seq.uncomputed
    if seq.news_prev >= 0:
        seqs[seq.news_prev].news_next = seq.news_next
    else:
        worker.news_head = seq.news_next
    if seq.news_next >= 0:
        seqs[seq.news_next].news_prev = seq.news_prev


@compiled
def release(workers: Records, seqs: Records, board: Board, s: int) -> bool:
    """`WorkerLedger.release`."""
    seq = seqs[s]
    if seq.held == 0:
        return False
    worker = workers[seq.worker]
    seq.held = 0
    worker.num_held -= 1
    _no_news(worker, seqs, s)
    worker.ledger_tokens -= seq.uncomputed
    worker.ledger_blocks -= seq.room
    note_load(worker, board)
    return True


@compiled
def settle(workers: Records, seqs: Records, board: Board, s: int, now_s: float, computed: bool) -> None:
    """`WorkerLedger.settle`."""
    seq = seqs[s]
    if seq.held == 0:
        return
    if seq.settled_s < 0.0:
        seq.settled_s = now_s
    if computed:
        worker = workers[seq.worker]
        worker.ledger_tokens -= seq.uncomputed
        if seq.news == 1 and seq.sent_s >= worker.known_s:
            worker.news_tokens -= seq.uncomputed
        seq.uncomputed = 0
        note_load(worker, board)


@compiled_apart
def note_statuses(w: Records, workers: Records, seqs: Records, board: Board) -> None:
    """Of all workers."""
    for index in range(len(workers)):
        _note_status(w, workers[index], seqs, board)
    forget_nodes(board)


@compiled
def _note_status(w: Records, worker: Records, seqs: Records, board: Board) -> None:
    """`WorkerLedger.note_status`, of the status that was on its way."""
    worker.has_status = 1
    worker.reported_free = worker.sent_free
    worker.reported_promised = worker.sent_promised
    worker.reported_uncomputed = worker.sent_uncomputed
    worker.known_s = w.now_s - ON_THE_WAY_S
    worker.news_tokens = 0
    s = worker.news_head
    while s >= 0:
        if seqs[s].sent_s >= worker.known_s:
            worker.news_tokens += seqs[s].uncomputed
        s = seqs[s].news_next
    s = worker.news_head
    while s >= 0:
        following = seqs[s].news_next
        settled_s = seqs[s].settled_s
        if settled_s >= 0.0 and max(seqs[s].sent_s, settled_s) < worker.known_s:
            _no_news(worker, seqs, s)
        s = following
    note_load(worker, board)
    note_latency(w, worker, board)
