"""Both sides of a handoff, driven through every order of events that a network allows."""

from __future__ import annotations

import random
from collections import deque

import pytest

from pdserve.errors import InvariantViolation
from pdserve.ids import SequenceKey
from scheduling.handoff import (
    SOURCE_NEXT,
    TARGET_NEXT,
    CommitSequence,
    Effect,
    FreeBlocks,
    Receive,
    Send,
    SourceState,
    SourceTransfer,
    StopSequence,
    TargetState,
    TargetTransfer,
    TellAbort,
    TellAbortAck,
    TellCommit,
    TellComplete,
    TellOffer,
    TellReady,
    TellReserved,
)  # fmt: skip

KEY = SequenceKey("r")


class Cluster:
    """One handoff over two first-in-first-out wires; transfers take any time, in a `pushed` or a fetching transport."""

    def __init__(self, num_blocks: int, skip: int, pushed: bool, rng: random.Random) -> None:
        self.source = SourceTransfer(KEY, 1, num_blocks)
        self.target = TargetTransfer(KEY)
        self.num_blocks, self.skip, self.pushed, self.rng = num_blocks, skip, pushed, rng
        self.to_target: deque[Effect] = deque()
        self.to_source: deque[tuple[str, object]] = deque()
        self.computed = 0
        self.credits: deque[Receive] = deque()
        self.sends: deque[Send] = deque()  # credited, on their way out
        self.arriving: deque[Receive] = deque()  # posted receives, first in first out
        self.payloads = 0  # sent messages not yet received
        self.source_freed = self.target_freed = self.committed = False
        self.source_stopped = self.target_stopped = False
        self.filled: set[int] = set(range(skip))
        self.cancelled = False

    def run_source(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    assert not self.source_freed, "sends blocks that were freed"
                    self.sends.append(effect)
                case FreeBlocks():
                    assert not self.source_freed
                    assert not self.sends and not (self.arriving and not self.pushed)
                    self.source_freed = True
                case StopSequence():
                    self.source_stopped = True
                case _:
                    self.to_target.append(effect)

    def run_target(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Receive():
                    assert not self.target_freed
                    self.arriving.append(effect)
                    if self.pushed:
                        self.to_source.append(("credit", effect))
                case CommitSequence(token):
                    assert token == 7 and not self.target_freed
                    assert self.filled == set(range(self.num_blocks)), "committed with blocks missing"
                    self.committed = True
                case FreeBlocks():
                    assert not self.target_freed and not self.arriving and not self.committed
                    self.target_freed = True
                case StopSequence():
                    self.target_stopped = True
                case TellReserved() | TellCommit() | TellAbort() | TellAbortAck():
                    self.to_source.append(("told", effect))

    # every move that may happen next
    def moves(self) -> list[str]:
        can = []
        if self.computed < self.num_blocks and not self.source_stopped:
            can.append("compute")
        if self.computed == self.num_blocks and self.source.first_token_id is None and not self.source_stopped:
            can.append("first_token")
        if self.target.state is TargetState.WAITING:
            can.append("room")
        for name, queue in (("wire_down", self.to_target), ("wire_up", self.to_source), ("send", self.sends)):
            if queue:
                can.append(name)
        if self.arriving and (not self.pushed or self.payloads):
            can.append("arrive")
        return can

    def do(self, move: str) -> None:
        match move:
            case "compute":
                n = self.rng.randint(1, self.num_blocks - self.computed)
                blocks = range(100 + self.computed, 100 + self.computed + n)
                self.run_source(self.source.on_ready(self.computed, blocks, [1] * n))
                self.computed += n
            case "first_token":
                self.run_source(self.source.on_first_token(7))
            case "room":
                self.run_target(self.target.on_room(range(self.num_blocks), self.skip))
            case "wire_down":
                self.deliver_down(self.to_target.popleft())
            case "wire_up":
                self.deliver_up(*self.to_source.popleft())
            case "send":
                send = self.sends.popleft()
                self.payloads += 1
                self.run_source(self.source.on_sent(len(send.indices)))
            case "arrive":
                receive = self.arriving.popleft()
                self.payloads -= self.pushed
                self.filled |= set(receive.indices)
                self.run_target(self.target.on_received(len(receive.indices)))

    def deliver_down(self, effect: Effect) -> None:
        match effect:
            case TellOffer(n):
                self.run_target(self.target.on_offer(1, n))
            case TellReady(first, ids, generations):
                self.run_target(self.target.on_ready(first, ids, generations))
            case TellComplete(token):
                self.run_target(self.target.on_complete(token))
            case TellAbort():
                self.run_target(self.target.on_peer_abort())

    def deliver_up(self, kind: str, effect: object) -> None:
        if kind == "credit":
            assert isinstance(effect, Receive)
            self.run_source(self.source.on_credit(effect.indices, [2 * i for i in effect.indices]))
            return
        match effect:
            case TellReserved(skip):
                self.run_source(self.source.on_reserved(skip))
            case TellCommit():
                self.run_source(self.source.on_commit())
            case TellAbort():
                self.run_source(self.source.on_peer_abort())
            case TellAbortAck():
                self.run_source(self.source.on_abort_ack())

    def pair_dies(self) -> None:
        """Both ends close their channel: nothing is in flight; what was on the wires is lost."""
        self.to_target.clear()
        self.to_source.clear()
        self.sends.clear()
        self.arriving.clear()
        self.payloads = 0
        self.run_source(self.source.on_pair_closed())
        self.run_target(self.target.on_pair_closed())


def new_cluster(seed: int) -> Cluster:
    rng = random.Random(seed)
    num_blocks = rng.randint(1, 6)
    cluster = Cluster(num_blocks, rng.randint(0, num_blocks), rng.random() < 0.5, rng)
    cluster.run_source(cluster.source.offer())
    return cluster


@pytest.mark.parametrize("base", range(10))
def test_without_trouble_every_order_ends_in_a_commit_and_a_free(base: int) -> None:
    for seed in range(base * 100, base * 100 + 100):
        cluster = new_cluster(seed)
        while moves := cluster.moves():
            cluster.do(cluster.rng.choice(moves))
        assert cluster.committed and cluster.source_freed and not cluster.target_freed
        assert cluster.source.state is SourceState.FREED and cluster.target.state is TargetState.COMMITTED


@pytest.mark.parametrize("base", range(20))
def test_aborts_and_lost_pairs_at_any_moment_free_both_sides_exactly_once(base: int) -> None:
    for seed in range(base * 100, base * 100 + 100):
        cluster = new_cluster(seed)
        rng, steps, trouble_at = cluster.rng, 0, cluster.rng.randint(0, 25)
        trouble = rng.choice(["source", "target", "both", "pair"])
        while (moves := cluster.moves()) or steps <= trouble_at:
            if steps == trouble_at:
                if trouble in ("source", "both"):
                    cluster.run_source(cluster.source.abort("cancelled"))
                if trouble in ("target", "both"):
                    cluster.run_target(cluster.target.abort("cancelled"))
                if trouble == "pair":
                    cluster.pair_dies()
            elif moves:
                cluster.do(rng.choice([m for m in moves if m != "room" or not cluster.target_stopped] or moves))
            steps += 1
        assert cluster.source_freed, f"seed {seed}: source holds its blocks ({trouble})"
        assert cluster.target_freed != cluster.committed, f"seed {seed}: target neither freed nor owns"


def test_every_state_has_moves_and_stale_events_change_nothing() -> None:
    assert set(SOURCE_NEXT) == set(SourceState) and set(TARGET_NEXT) == set(TargetState)
    source = SourceTransfer(KEY, 1, 2)
    source.offer()
    source.abort("x")
    assert source.state is SourceState.ABORTED
    assert source.on_reserved(0) == [] and source.on_commit() == [] and source.abort("again") == []


def test_a_credit_for_a_block_never_announced_is_refused() -> None:
    source = SourceTransfer(KEY, 1, 2)
    source.offer()
    source.on_reserved(0)
    source.on_ready(0, [5], [1])
    with pytest.raises(InvariantViolation, match="never announced"):
        source.on_credit([1], [2])


def test_an_announcement_with_a_gap_is_refused() -> None:
    target = TargetTransfer(KEY)
    target.on_offer(1, 4)
    target.on_room([0, 1, 2, 3], 0)
    with pytest.raises(InvariantViolation, match="expected 0"):
        target.on_ready(1, [9], [1])
