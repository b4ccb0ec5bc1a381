"""The decode worker's side of a handoff; see scheduling/handoff.py for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from pdserve.errors import InvariantViolation
from pdserve.ids import SequenceKey
from scheduling.handoff_effects import (
    CommitSequence,
    Effect,
    FreeBlocks,
    Receive,
    StopSequence,
    TellAbort,
    TellAbortAck,
    TellCommit,
    TellReserved,
)  # fmt: skip


class TargetState(Enum):
    """D's side."""

    WAITING = "waiting"  # D owns nothing of it
    RESERVED = "reserved"  # D owns blocks set aside; no byte has moved
    RECEIVING = "receiving"  # D owns the blocks, but nobody may read them: bytes arrive
    COMMITTED = "committed"  # D owns the sequence; P frees
    ABORTED = "aborted"  # D owns the blocks until its last receive has ended, then they are free


TARGET_NEXT = {
    TargetState.WAITING: {TargetState.RESERVED, TargetState.ABORTED},
    TargetState.RESERVED: {TargetState.RECEIVING, TargetState.COMMITTED, TargetState.ABORTED},
    TargetState.RECEIVING: {TargetState.COMMITTED, TargetState.ABORTED},
    TargetState.COMMITTED: set(),
    TargetState.ABORTED: set(),
}


@dataclass(slots=True)
class TargetTransfer:
    """D's side of one handoff. Events are methods; each returns the effects in order."""

    key: SequenceKey
    state: TargetState = TargetState.WAITING
    transfer_id: int | None = None  # known with the offer
    block_ids: tuple[int, ...] = ()  # of the prompt, by index
    skip: int = 0  # cached here already
    requested: int = 0  # indices below were asked for
    received: int = 0  # blocks verified in place
    in_flight: int = 0  # receives posted and not ended
    first_token_id: int | None = None
    done: bool = False

    def on_offer(self, transfer_id: int, num_blocks: int) -> list[Effect]:
        """P computes the prompt."""
        if self.state is TargetState.ABORTED:
            return [TellAbort("aborted before the offer"), TellAbortAck()]
        if self.transfer_id is not None:
            raise InvariantViolation(f"second offer of {self.key.request_id}")
        self.transfer_id = transfer_id
        if self.block_ids and len(self.block_ids) != num_blocks:
            raise InvariantViolation(f"offer of {num_blocks} blocks, prompt has {len(self.block_ids)}")
        return self._reserved()

    def on_room(self, block_ids: Sequence[int], skip: int) -> list[Effect]:
        """The engine set blocks aside for the whole prompt; the first `skip` hold its KV already."""
        if self.state is not TargetState.WAITING:
            return []
        self._go(TargetState.RESERVED)
        self.block_ids, self.skip, self.requested = tuple(block_ids), skip, skip
        return self._reserved()

    def on_ready(self, first: int, block_ids: Sequence[int], generations: Sequence[int]) -> list[Effect]:
        """P has these blocks complete; fetch them."""
        if self.state is TargetState.ABORTED:
            return []  # P has our abort or will read it; nothing is posted any more
        end = first + len(block_ids)
        if first != self.requested or end > len(self.block_ids) or len(generations) != len(block_ids):
            raise InvariantViolation(f"blocks {first}..{end} announced, expected {self.requested}..")
        if self.state is TargetState.RESERVED:
            self._go(TargetState.RECEIVING)
        self.requested = end
        self.in_flight += len(block_ids)
        return [Receive(tuple(range(first, end)), tuple(block_ids), tuple(generations), self.block_ids[first:end])]

    def on_received(self, count: int) -> list[Effect]:
        """`count` blocks arrived and were verified, or their receive ended after an abort."""
        self.in_flight -= count
        self.received += count
        assert self.in_flight >= 0
        return self._settle() if self.state is TargetState.ABORTED else self._commit()

    def on_complete(self, first_token_id: int) -> list[Effect]:
        """P's last word."""
        if self.state not in (TargetState.RESERVED, TargetState.RECEIVING):
            return []
        self.first_token_id = first_token_id
        return self._commit()

    def on_peer_abort(self) -> list[Effect]:
        """P gave up; what it was credited still arrives."""
        if self.state is TargetState.ABORTED:
            return [TellAbortAck()] if not self.in_flight else []
        if self.state is TargetState.COMMITTED:
            return []  # too late: D owns the sequence, P will read the commit
        return self._abort([])

    def abort(self, reason: str) -> list[Effect]:
        """Cancelled, refused digest, out of time. Safe to repeat; after the commit the engine alone ends it."""
        if self.state in (TargetState.ABORTED, TargetState.COMMITTED):
            return []
        tell: list[Effect] = [TellAbort(reason)] if self.transfer_id is not None else []
        return self._abort(tell)

    def on_pair_closed(self) -> list[Effect]:
        """The pair is destroyed: nothing can write the blocks."""
        self.in_flight = 0
        if self.state is TargetState.COMMITTED:
            return []
        return self._settle() if self.state is TargetState.ABORTED else self._abort([])

    def _abort(self, tell: list[Effect]) -> list[Effect]:
        self._go(TargetState.ABORTED)
        return [StopSequence(), *tell, *self._settle()]

    def _reserved(self) -> list[Effect]:
        if self.transfer_id is None or self.state is not TargetState.RESERVED:
            return []
        return [TellReserved(self.skip)]

    def _commit(self) -> list[Effect]:
        complete = self.first_token_id is not None and self.skip + self.received == len(self.block_ids)
        if not complete or self.state is TargetState.COMMITTED:
            return []
        assert self.first_token_id is not None and self.in_flight == 0
        self._go(TargetState.COMMITTED)
        self.done = True
        return [CommitSequence(self.first_token_id), TellCommit()]

    def _settle(self) -> list[Effect]:
        if self.done or self.in_flight:
            return []
        self.done = True
        ack: list[Effect] = [TellAbortAck()] if self.transfer_id is not None else []
        return [*ack, FreeBlocks(committed=False)]

    def _go(self, to: TargetState) -> None:
        if to not in TARGET_NEXT[self.state]:
            raise InvariantViolation(f"handoff target cannot go {self.state.value} -> {to.value}")
        self.state = to
