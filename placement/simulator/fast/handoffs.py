"""`placement.simulator.handoffs` with the state machine of `scheduling.handoff_source`, compiled.

Records to engines go into `commands`: rows of (kind, sequence, next), a list for each worker.
"""

from __future__ import annotations

from placement.compiled import compiled_apart
from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.events import Queue, push
from placement.simulator.fast.records import (
    ABORT,
    ABORT_TO_TARGET,
    FREED,
    LAST_WORD,
    MESSAGE,
    OFFER,
    QUARANTINE,
    READY,
    S_ABORTED,
    S_FREED,
    S_HOLDING,
    S_SENDING,
    S_SENT,
    T_WAITING,
    TURN,
    WAKE,
    Records,
    wide,
)


@compiled
def put(queue: Queue, w: Records, workers: Records, commands: Records, index: int, kind: int, s: int) -> None:
    """`SimWorker.put`."""
    worker = workers[index]
    row = w.free_command
    if row >= 0:
        w.free_command = commands[row].next
    else:
        row = w.num_commands
        w.num_commands += 1
        if 2 * row > len(commands):
            w.crowded = 1
    commands[row].kind, commands[row].s, commands[row].next = kind, s, -1
    if worker.command_head < 0:
        worker.command_head = row
    else:
        commands[worker.command_tail].next = row
    worker.command_tail = row
    if worker.ahead > 0:
        if worker.touched == 0:
            worker.touched, w.touched = w.touched + 2, index
    elif worker.stepping == 0 and worker.woken == 0:
        worker.woken = 1
        push(queue, w, WAKE, TURN, wide(index), 0)


@compiled
def begin(queue: Queue, w: Records, hands: Records, i: int, num_blocks: int) -> None:
    """`Handoffs.begin`."""
    h = hands[i]
    h.live, h.blocks, h.source, h.target, h.quiet = 1, num_blocks, S_HOLDING, T_WAITING, 1
    w.handoffs += 1
    push(queue, w, MESSAGE, OFFER, i, 0)


@compiled
def settle(w: Records, hands: Records, i: int) -> None:
    """`Handoffs._settle`."""
    h = hands[i]
    if h.live == 1 and h.source_freed == 1 and h.target_freed == 1:
        h.live = 0
        w.handoffs -= 1


# ---- the source's side ----


@compiled
def announce(queue: Queue, w: Records, hands: Records, i: int) -> None:
    """`SourceTransfer._announce`."""
    h = hands[i]
    if h.source != S_SENDING:
        return
    if h.announced < h.ready:
        count = h.ready - h.announced
        h.announced = h.ready
        h.quiet = 0
        push(queue, w, MESSAGE, READY, i, count)
    if h.token == 1 and h.ready == h.blocks:
        h.source = S_SENT
        push(queue, w, MESSAGE, LAST_WORD, i, 0)


@compiled
def _source_ends(
    queue: Queue, w: Records, workers: Records, commands: Records, requests: Records, hands: Records, i: int
) -> None:
    """`SourceTransfer._settle`, and its effect."""
    h = hands[i]
    if h.source < S_FREED or h.source_done == 1 or h.quiet == 0:
        return
    h.source_done = 1
    put(queue, w, workers, commands, requests[i].prefill, ABORT, 2 * i)
    h.source_freed = 1
    push(queue, w, MESSAGE, FREED, i, 0)


@compiled
def on_reserved(queue: Queue, w: Records, hands: Records, i: int) -> None:
    """`SourceTransfer.on_reserved`."""
    if hands[i].source == S_HOLDING:
        hands[i].source = S_SENDING
        hands[i].announced = hands[i].skip
        announce(queue, w, hands, i)
    settle(w, hands, i)


@compiled
def on_commit_told(
    queue: Queue, w: Records, workers: Records, commands: Records, requests: Records, hands: Records, i: int
) -> None:
    """`SourceTransfer.on_commit`."""
    h = hands[i]
    if h.source == S_ABORTED:
        h.quiet = 1
        _source_ends(queue, w, workers, commands, requests, hands, i)
    elif h.source == S_SENT:
        h.source = S_FREED
        h.quiet = 1
        _source_ends(queue, w, workers, commands, requests, hands, i)
    settle(w, hands, i)


@compiled_apart
def on_abort_ack(
    queue: Queue, w: Records, workers: Records, commands: Records, requests: Records, hands: Records, i: int
) -> None:
    """`SourceTransfer.on_abort_ack`."""
    if hands[i].source == S_ABORTED:
        hands[i].quiet = 1
    _source_ends(queue, w, workers, commands, requests, hands, i)
    settle(w, hands, i)


@compiled_apart
def abort_source(
    queue: Queue, w: Records, workers: Records, commands: Records, requests: Records, hands: Records, i: int, tell: bool
) -> None:
    """`SourceTransfer.abort`, or `on_peer_abort` without `tell`."""
    h = hands[i]
    if h.source < S_FREED:
        h.source = S_ABORTED
        put(queue, w, workers, commands, requests[i].prefill, QUARANTINE, 2 * i)
        if tell:
            push(queue, w, MESSAGE, ABORT_TO_TARGET, i, 0)
        _source_ends(queue, w, workers, commands, requests, hands, i)
    settle(w, hands, i)
