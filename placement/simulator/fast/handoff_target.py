"""`placement.simulator.handoffs`, the state machine of `scheduling.handoff_target`, compiled, and what ends both."""

from __future__ import annotations

from placement.compiled import compiled_apart
from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.events import Queue, push
from placement.simulator.fast.handoffs import abort_source, put, settle
from placement.simulator.fast.records import (
    ABORT,
    ABORT_ACK,
    ABORT_TO_SOURCE,
    COMMIT,
    COMMITTED,
    MESSAGE,
    QUARANTINE,
    RESERVE,
    T_ABORTED,
    T_COMMITTED,
    T_RECEIVING,
    T_RESERVED,
    T_WAITING,
    Records,
)  # fmt: skip


@compiled
def _tell_reserved(queue: Queue, w: Records, hands: Records, i: int) -> None:
    if hands[i].offered == 1 and hands[i].target == T_RESERVED:
        push(queue, w, MESSAGE, RESERVE, i, 0)


@compiled
def on_offer(queue: Queue, w: Records, hands: Records, i: int) -> None:
    """`TargetTransfer.on_offer`."""
    h = hands[i]
    if h.target == T_ABORTED:
        push(queue, w, MESSAGE, ABORT_TO_SOURCE, i, 0)
        push(queue, w, MESSAGE, ABORT_ACK, i, 0)
    else:
        h.offered = 1
        _tell_reserved(queue, w, hands, i)
    settle(w, hands, i)


@compiled
def on_room(queue: Queue, w: Records, hands: Records, i: int, skip: int) -> None:
    """`TargetTransfer.on_room`."""
    h = hands[i]
    if h.live == 1:
        if h.target == T_WAITING:
            h.target = T_RESERVED
            h.skip = skip
            h.known = h.blocks - skip
            _tell_reserved(queue, w, hands, i)
        settle(w, hands, i)


@compiled
def on_ready(hands: Records, i: int, count: int) -> bool:
    """`TargetTransfer.on_ready`: whether to fetch them."""
    h = hands[i]
    if h.target == T_ABORTED:
        return False
    if h.target == T_RESERVED:
        h.target = T_RECEIVING
    h.in_flight += count
    return True


@compiled
def commit_if_whole(
    queue: Queue, w: Records, workers: Records, commands: Records, requests: Records, hands: Records, i: int
) -> None:
    """`TargetTransfer._commit`, and its effects."""
    h = hands[i]
    if h.target_token == 0 or h.received != h.known or h.target == T_COMMITTED:
        return
    h.target = T_COMMITTED
    h.target_done = 1
    put(queue, w, workers, commands, requests[i].decode, COMMIT, 2 * i + 1)
    h.target_freed = 1
    push(queue, w, MESSAGE, COMMITTED, i, 0)


@compiled_apart
def _target_ends(
    queue: Queue, w: Records, workers: Records, commands: Records, requests: Records, hands: Records, i: int
) -> None:
    """`TargetTransfer._settle`, and its effects."""
    h = hands[i]
    if h.target_done == 1 or h.in_flight > 0:
        return
    h.target_done = 1
    if h.offered == 1:
        push(queue, w, MESSAGE, ABORT_ACK, i, 0)
    put(queue, w, workers, commands, requests[i].decode, ABORT, 2 * i + 1)
    h.target_freed = 1


@compiled
def on_received(
    queue: Queue, w: Records, workers: Records, commands: Records, requests: Records, hands: Records, i: int, count: int
) -> None:
    """`TargetTransfer.on_received`."""
    h = hands[i]
    h.in_flight -= count
    h.received += count
    if h.target == T_ABORTED:
        _target_ends(queue, w, workers, commands, requests, hands, i)
    else:
        commit_if_whole(queue, w, workers, commands, requests, hands, i)
    settle(w, hands, i)


@compiled
def on_last_word(
    queue: Queue, w: Records, workers: Records, commands: Records, requests: Records, hands: Records, i: int
) -> None:
    """`TargetTransfer.on_complete`."""
    h = hands[i]
    if h.target in (T_RESERVED, T_RECEIVING):
        h.target_token = 1
        commit_if_whole(queue, w, workers, commands, requests, hands, i)
    settle(w, hands, i)


@compiled_apart
def abort_target(
    queue: Queue, w: Records, workers: Records, commands: Records, requests: Records, hands: Records, i: int, tell: bool
) -> None:
    """`TargetTransfer.abort`, or `on_peer_abort` without `tell`."""
    h = hands[i]
    if h.target == T_ABORTED:
        if not tell and h.in_flight == 0:
            push(queue, w, MESSAGE, ABORT_ACK, i, 0)
    elif h.target != T_COMMITTED:
        h.target = T_ABORTED
        put(queue, w, workers, commands, requests[i].decode, QUARANTINE, 2 * i + 1)
        if tell and h.offered == 1:
            push(queue, w, MESSAGE, ABORT_TO_SOURCE, i, 0)
        _target_ends(queue, w, workers, commands, requests, hands, i)
    settle(w, hands, i)


@compiled_apart
def abort_any(
    queue: Queue, w: Records, workers: Records, commands: Records, requests: Records, hands: Records, i: int, side: int
) -> bool:
    """`Handoffs.abort`, from side 0 (source) or 1 (target)."""
    h = hands[i]
    if h.live == 0:
        return False
    if side == 0 and h.source_freed == 0:
        abort_source(queue, w, workers, commands, requests, hands, i, True)
        return True
    if side == 1 and h.target_freed == 0:
        abort_target(queue, w, workers, commands, requests, hands, i, True)
        return True
    return False
