"""`placement.simulator.router`, compiled: a request from its arrival to its end."""

from __future__ import annotations

from placement.compiled import compiled_apart
from placement.compiled import compiled_inner as compiled
from placement.simulator.fast import ledger
from placement.simulator.fast.ahead import Ahead, catch_up
from placement.simulator.fast.board import Board
from placement.simulator.fast.choosing import choose
from placement.simulator.fast.directory import Directory, expected, missed, note
from placement.simulator.fast.estimator import coefficients
from placement.simulator.fast.events import Queue, push, push_at
from placement.simulator.fast.records import (
    ABORT_AT,
    ARRIVE,
    DECODE,
    FULL,
    MESSAGE,
    NEVER,
    PREFILL,
    STATUS,
    STATUS_DUE,
    SUBMIT_BOTH,
    SUBMIT_TO,
    Records,
)
from placement.simulator.fast.scheduler import blocks_for, promised_blocks, uncomputed_tokens
from placement.simulator.fast.steady import Steady
from placement.simulator.fast.store import Cache

_FINISHED, _REJECTED = 1, 2  # placement.simulator.requests.Outcome


@compiled
def admit_next(queue: Queue, w: Records, requests: Records) -> None:
    if w.next < len(requests):
        push_at(queue, w, requests[w.next].arrival_s, ARRIVE, w.next, 0)
        w.next += 1


@compiled_apart
def report(
    queue: Queue, w: Records, workers: Records, cache: Cache | None, requests: Records, seqs: Records, steady: Steady,
    ahead: Ahead,
) -> None:  # fmt: skip
    """`SimRouter.report_statuses`, and the next one."""
    for index in range(len(workers)):
        worker = workers[index]
        if worker.ahead > 0:
            catch_up(w, worker, cache, requests, seqs, steady, ahead, index)
        worker.sent_free = worker.free
        worker.sent_promised = promised_blocks(worker, seqs)
        worker.sent_uncomputed = uncomputed_tokens(worker, seqs)
        if worker.observes == 1:
            coefficients(w, worker, worker.sent_coefficients)
    push(queue, w, MESSAGE, STATUS, 0, 0)
    if w.next < len(requests) or w.running > 0 or w.handoffs > 0:
        push_at(queue, w, w.now_s + w.status_s, STATUS_DUE, 0, 0)


@compiled
def note_miss(w: Records, request: Records, i: int) -> None:
    """A request misses its targets; after more of them than the run may have, it is given up."""
    if i >= w.first and request.missed == 0:
        request.missed = 1
        w.missed += 1


@compiled
def submit(
    queue: Queue, w: Records, workers: Records, requests: Records, seqs: Records, board: Board,
    directory: Directory | None, i: int,
) -> None:  # fmt: skip
    """`SimRouter.submit`."""
    request = requests[i]
    if w.running >= w.max_in_flight:
        request.outcome = _REJECTED
        note_miss(w, request, i)
        return
    prompt, output = request.prompt, request.output
    prefill, decode = choose(w, workers, board, directory, i, prompt, output)
    computing, cached = prefill if prefill >= 0 else decode, 0
    if directory is not None:
        cached = expected(directory, computing, i, prompt)
        note(directory, computing, i, prompt)
        if prefill >= 0:
            note(directory, decode, i, prompt, False)
    request.prefill, request.decode = prefill, decode
    request.running = 1
    w.running += 1
    room = blocks_for(workers[decode], prompt + min(output, w.growth))
    ledger.hold(workers, seqs, board, 2 * i + 1, decode, w.now_s, prompt - cached if prefill < 0 else 0, room)
    seqs[2 * i + 1].mode = FULL if prefill < 0 else DECODE
    seqs[2 * i + 1 if prefill < 0 else 2 * i].expected = cached
    if prefill < 0:
        push(queue, w, MESSAGE, SUBMIT_TO, 2 * i + 1, 0)
    else:
        blocks = blocks_for(workers[prefill], prompt)
        ledger.hold(workers, seqs, board, 2 * i, prefill, w.now_s, prompt - cached, blocks)
        seqs[2 * i].mode = PREFILL
        push(queue, w, MESSAGE, SUBMIT_BOTH, i, blocks)


@compiled
def submit_to(w: Records, workers: Records, requests: Records, seqs: Records, s: int) -> None:
    """`SimRouter._submit_to`."""
    seq, request = seqs[s], requests[s // 2]
    seq.arrival_s = w.now_s
    seq.tokens = seq.given = request.prompt
    seq.most = min(request.prompt + request.output, workers[seq.worker].max_len)
    seq.first_step_s = seq.committed_s = NEVER


@compiled
def note_cached(directory: Directory | None, requests: Records, seqs: Records, s: int) -> None:
    """A first token came: was as much of the prompt cached as was expected?"""
    if directory is not None and requests[s // 2].running == 1 and (s % 2 == 0 or seqs[s].mode == FULL):
        missed(directory, seqs[s].worker, seqs[s].expected - seqs[s].cached_tokens)


@compiled
def note_committed(directory: Directory | None, request: Records, i: int) -> None:
    """The decode worker has the prompt."""
    if directory is not None:
        note(directory, request.decode, i, request.prompt)


@compiled
def finish(
    queue: Queue, w: Records, workers: Records, requests: Records, seqs: Records, board: Board,
    directory: Directory | None, s: int,
) -> None:  # fmt: skip
    """`SimRouter._finish` and `_end`."""
    i = s // 2
    request = requests[i]
    if directory is not None and s % 2 == 1:
        note(directory, request.decode, i, request.prompt + request.tokens - 1)
    ledger.release(workers, seqs, board, s)
    request.outcome = _FINISHED
    request.running = 0
    w.running -= 1
    if request.last_s - request.first_s > w.tpot_s * (request.tokens - 1):
        note_miss(w, request, i)
    if request.prefill >= 0 and request.committed_s < 0.0 and ledger.release(workers, seqs, board, 2 * i):
        push(queue, w, MESSAGE, ABORT_AT, 2 * i, 0)
    if ledger.release(workers, seqs, board, 2 * i + 1):
        push(queue, w, MESSAGE, ABORT_AT, 2 * i + 1, 0)
