"""`placement.simulator.handoffs` with the state machines of `scheduling.handoff_source` and `_target`, compiled.

Commands to engines go into `commands`: rows of (kind, sequence, next), a list for each worker.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from placement.simulator.fast.events import Heap, push
from placement.simulator.fast.records import (
    ABORT,
    ABORT_ACK,
    ABORT_TO_SOURCE,
    ABORT_TO_TARGET,
    COMMIT,
    COMMIT_TOLD,
    COMMITTED,
    FREED,
    LAST_WORD,
    OFFER,
    QUARANTINE,
    READY,
    RESERVE,
    S_ABORTED,
    S_FREED,
    S_HOLDING,
    S_SENDING,
    S_SENT,
    T_ABORTED,
    T_COMMITTED,
    T_RECEIVING,
    T_RESERVED,
    T_WAITING,
    TURN,
    Records,
)

Commands = list[Any]


@njit(cache=True)
def put(heap: Heap, w: Records, workers: Records, commands: Commands, index: int, kind: int, s: int) -> None:
    """`SimWorker.put`."""
    worker = workers[index]
    commands.append((kind, s, -1))
    row = len(commands) - 1
    if worker.command_head < 0:
        worker.command_head = row
    else:
        last = commands[worker.command_tail]
        commands[worker.command_tail] = (last[0], last[1], row)
    worker.command_tail = row
    if worker.stepping == 0 and worker.woken == 0:
        worker.woken = 1
        push(heap, w, w.wake_s, TURN, index, 0)


@njit(cache=True)
def begin(heap: Heap, w: Records, hands: Records, i: int, num_blocks: int) -> None:
    """`Handoffs.begin`."""
    h = hands[i]
    h.live, h.blocks, h.source, h.target, h.quiet = 1, num_blocks, S_HOLDING, T_WAITING, 1
    w.handoffs += 1
    push(heap, w, w.message_s, OFFER, i, 0)


@njit(cache=True)
def _settle(w: Records, hands: Records, i: int) -> None:
    """`Handoffs._settle`."""
    h = hands[i]
    if h.live == 1 and h.source_freed == 1 and h.target_freed == 1:
        h.live = 0
        w.handoffs -= 1


# ---- the source's side ----


@njit(cache=True)
def announce(heap: Heap, w: Records, hands: Records, i: int) -> None:
    """`SourceTransfer._announce`."""
    h = hands[i]
    if h.source != S_SENDING:
        return
    if h.announced < h.ready:
        count = h.ready - h.announced
        h.announced = h.ready
        h.quiet = 0
        push(heap, w, w.message_s, READY, i, count)
    if h.token == 1 and h.ready == h.blocks:
        h.source = S_SENT
        push(heap, w, w.message_s, LAST_WORD, i, 0)


@njit(cache=True)
def _source_ends(
    heap: Heap, w: Records, workers: Records, commands: Commands, requests: Records, hands: Records, i: int
) -> None:
    """`SourceTransfer._settle`, and its effect."""
    h = hands[i]
    if h.source < S_FREED or h.source_done == 1 or h.quiet == 0:
        return
    h.source_done = 1
    put(heap, w, workers, commands, requests[i].prefill, ABORT, 2 * i)
    h.source_freed = 1
    push(heap, w, w.message_s, FREED, i, 0)


@njit(cache=True)
def on_reserved(heap: Heap, w: Records, hands: Records, i: int) -> None:
    """`SourceTransfer.on_reserved`."""
    if hands[i].source == S_HOLDING:
        hands[i].source = S_SENDING
        announce(heap, w, hands, i)
    _settle(w, hands, i)


@njit(cache=True)
def on_commit_told(
    heap: Heap, w: Records, workers: Records, commands: Commands, requests: Records, hands: Records, i: int
) -> None:
    """`SourceTransfer.on_commit`."""
    h = hands[i]
    if h.source == S_ABORTED:
        h.quiet = 1
        _source_ends(heap, w, workers, commands, requests, hands, i)
    elif h.source == S_SENT:
        h.source = S_FREED
        h.quiet = 1
        _source_ends(heap, w, workers, commands, requests, hands, i)
    _settle(w, hands, i)


@njit(cache=True)
def on_abort_ack(
    heap: Heap, w: Records, workers: Records, commands: Commands, requests: Records, hands: Records, i: int
) -> None:
    """`SourceTransfer.on_abort_ack`."""
    if hands[i].source == S_ABORTED:
        hands[i].quiet = 1
    _source_ends(heap, w, workers, commands, requests, hands, i)
    _settle(w, hands, i)


@njit(cache=True)
def abort_source(
    heap: Heap, w: Records, workers: Records, commands: Commands, requests: Records, hands: Records, i: int, tell: bool
) -> None:
    """`SourceTransfer.abort`, or `on_peer_abort` without `tell`."""
    h = hands[i]
    if h.source < S_FREED:
        h.source = S_ABORTED
        put(heap, w, workers, commands, requests[i].prefill, QUARANTINE, 2 * i)
        if tell:
            push(heap, w, w.message_s, ABORT_TO_TARGET, i, 0)
        _source_ends(heap, w, workers, commands, requests, hands, i)
    _settle(w, hands, i)


# ---- the target's side ----


@njit(cache=True)
def _tell_reserved(heap: Heap, w: Records, hands: Records, i: int) -> None:
    if hands[i].offered == 1 and hands[i].target == T_RESERVED:
        push(heap, w, w.message_s, RESERVE, i, 0)


@njit(cache=True)
def on_offer(heap: Heap, w: Records, hands: Records, i: int) -> None:
    """`TargetTransfer.on_offer`."""
    h = hands[i]
    if h.target == T_ABORTED:
        push(heap, w, w.message_s, ABORT_TO_SOURCE, i, 0)
        push(heap, w, w.message_s, ABORT_ACK, i, 0)
    else:
        h.offered = 1
        _tell_reserved(heap, w, hands, i)
    _settle(w, hands, i)


@njit(cache=True)
def on_room(heap: Heap, w: Records, hands: Records, i: int) -> None:
    """`TargetTransfer.on_room`."""
    h = hands[i]
    if h.live == 1:
        if h.target == T_WAITING:
            h.target = T_RESERVED
            h.known = h.blocks
            _tell_reserved(heap, w, hands, i)
        _settle(w, hands, i)


@njit(cache=True)
def on_ready(hands: Records, i: int, count: int) -> bool:
    """`TargetTransfer.on_ready`: whether to fetch them."""
    h = hands[i]
    if h.target == T_ABORTED:
        return False
    if h.target == T_RESERVED:
        h.target = T_RECEIVING
    h.in_flight += count
    return True


@njit(cache=True)
def commit_if_whole(
    heap: Heap, w: Records, workers: Records, commands: Commands, requests: Records, hands: Records, i: int
) -> None:
    """`TargetTransfer._commit`, and its effects."""
    h = hands[i]
    if h.target_token == 0 or h.received != h.known or h.target == T_COMMITTED:
        return
    h.target = T_COMMITTED
    h.target_done = 1
    put(heap, w, workers, commands, requests[i].decode, COMMIT, 2 * i + 1)
    h.target_freed = 1
    push(heap, w, w.message_s, COMMITTED, i, 0)
    push(heap, w, w.message_s, COMMIT_TOLD, i, 0)


@njit(cache=True)
def _target_ends(
    heap: Heap, w: Records, workers: Records, commands: Commands, requests: Records, hands: Records, i: int
) -> None:
    """`TargetTransfer._settle`, and its effects."""
    h = hands[i]
    if h.target_done == 1 or h.in_flight > 0:
        return
    h.target_done = 1
    if h.offered == 1:
        push(heap, w, w.message_s, ABORT_ACK, i, 0)
    put(heap, w, workers, commands, requests[i].decode, ABORT, 2 * i + 1)
    h.target_freed = 1


@njit(cache=True)
def on_received(
    heap: Heap, w: Records, workers: Records, commands: Commands, requests: Records, hands: Records, i: int, count: int
) -> None:
    """`TargetTransfer.on_received`."""
    h = hands[i]
    h.in_flight -= count
    h.received += count
    if h.target == T_ABORTED:
        _target_ends(heap, w, workers, commands, requests, hands, i)
    else:
        commit_if_whole(heap, w, workers, commands, requests, hands, i)
    _settle(w, hands, i)


@njit(cache=True)
def on_last_word(
    heap: Heap, w: Records, workers: Records, commands: Commands, requests: Records, hands: Records, i: int
) -> None:
    """`TargetTransfer.on_complete`."""
    h = hands[i]
    if h.target in (T_RESERVED, T_RECEIVING):
        h.target_token = 1
        commit_if_whole(heap, w, workers, commands, requests, hands, i)
    _settle(w, hands, i)


@njit(cache=True)
def abort_target(
    heap: Heap, w: Records, workers: Records, commands: Commands, requests: Records, hands: Records, i: int, tell: bool
) -> None:
    """`TargetTransfer.abort`, or `on_peer_abort` without `tell`."""
    h = hands[i]
    if h.target == T_ABORTED:
        if not tell and h.in_flight == 0:
            push(heap, w, w.message_s, ABORT_ACK, i, 0)
    elif h.target != T_COMMITTED:
        h.target = T_ABORTED
        put(heap, w, workers, commands, requests[i].decode, QUARANTINE, 2 * i + 1)
        if tell and h.offered == 1:
            push(heap, w, w.message_s, ABORT_TO_SOURCE, i, 0)
        _target_ends(heap, w, workers, commands, requests, hands, i)
    _settle(w, hands, i)


@njit(cache=True)
def abort_any(
    heap: Heap, w: Records, workers: Records, commands: Commands, requests: Records, hands: Records, i: int, side: int
) -> bool:
    """`Handoffs.abort`, from side 0 (source) or 1 (target)."""
    h = hands[i]
    if h.live == 0:
        return False
    if side == 0 and h.source_freed == 0:
        abort_source(heap, w, workers, commands, requests, hands, i, True)
        return True
    if side == 1 and h.target_freed == 0:
        abort_target(heap, w, workers, commands, requests, hands, i, True)
        return True
    return False
