"""The prefill worker's side of a handoff; see scheduling/handoff.py for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from pdserve.errors import InvariantViolation
from pdserve.ids import SequenceKey
from scheduling.handoff_effects import (
    Effect,
    FreeBlocks,
    Send,
    StopSequence,
    TellAbort,
    TellComplete,
    TellOffer,
    TellReady,
)  # fmt: skip


class SourceState(Enum):
    """P's side."""

    HOLDING = "holding"  # P owns the blocks; D has not promised room, no byte has moved
    SENDING = "sending"  # P owns the blocks; D may read or be sent those announced
    SENT = "sent"  # P owns the blocks; every one is announced, and token 1; D has not committed
    FREED = "freed"  # the commit was read: P's blocks are free as soon as its last send has returned
    ABORTED = "aborted"  # P owns the blocks until nothing is in flight and D is quiet, then they are free


SOURCE_NEXT = {
    SourceState.HOLDING: {SourceState.SENDING, SourceState.ABORTED},
    SourceState.SENDING: {SourceState.SENT, SourceState.ABORTED},
    SourceState.SENT: {SourceState.FREED, SourceState.ABORTED},
    SourceState.FREED: set(),
    SourceState.ABORTED: set(),
}


@dataclass(slots=True)
class SourceTransfer:
    """P's side of one handoff. Events are methods; each returns the effects in order."""

    key: SequenceKey
    transfer_id: int
    num_blocks: int  # of the whole prompt
    state: SourceState = SourceState.HOLDING
    skip: int = 0  # blocks that D has already
    ready: list[tuple[int, int]] = field(default_factory=list)  # (block id, generation) by index
    announced: int = 0  # indices below were told
    first_token_id: int | None = None
    offered: bool = False
    in_flight: int = 0  # credited blocks whose send has not returned
    peer_quiet: bool = True  # D cannot be reading our blocks
    done: bool = False

    def offer(self) -> list[Effect]:
        """The pair is up: tell D. Called once."""
        if self.state is not SourceState.HOLDING or self.offered:
            return []
        self.offered = True
        return [TellOffer(self.num_blocks)]

    def on_ready(self, first: int, block_ids: Sequence[int], generations: Sequence[int]) -> list[Effect]:
        """The engine completed blocks [first, first + n)."""
        if first != len(self.ready) or first + len(block_ids) > self.num_blocks:
            raise InvariantViolation(f"blocks {first}+{len(block_ids)} became ready after {len(self.ready)} "
                                     f"of {self.num_blocks}")  # fmt: skip
        self.ready += zip(block_ids, generations, strict=True)
        return self._announce()

    def on_first_token(self, token_id: int) -> list[Effect]:
        """The prompt is computed and token 1 sampled; the request goes on."""
        self.first_token_id = token_id
        return self._announce()

    def on_reserved(self, skip: int) -> list[Effect]:
        """D has room."""
        if self.state is not SourceState.HOLDING or not self.offered or skip > self.num_blocks:
            return []  # stale
        self._go(SourceState.SENDING)
        self.skip = self.announced = skip
        return self._announce()

    def on_credit(self, indices: Sequence[int], tags: Sequence[int]) -> list[Effect]:
        """D has posted receives. They are always answered, even when aborted: a posted receive must end."""
        if any(not self.skip <= i < self.announced for i in indices) or len(indices) != len(tags) or self.done:
            raise InvariantViolation(f"credit for blocks never announced: {list(indices)[:4]}")
        self.in_flight += len(indices)
        blocks = [self.ready[i] for i in indices]
        return [Send(tuple(indices), tuple(tags), tuple(b for b, _ in blocks), tuple(g for _, g in blocks))]

    def on_sent(self, count: int) -> list[Effect]:
        """`count` sends have returned: the pair no longer reads those blocks."""
        self.in_flight -= count
        assert self.in_flight >= 0
        return self._settle()

    def on_commit(self) -> list[Effect]:
        """D owns the sequence, and reads nothing of P's any more."""
        if self.state is SourceState.ABORTED:
            self.peer_quiet = True
            return self._settle()
        if self.state is not SourceState.SENT:
            return []  # early or doubled
        self._go(SourceState.FREED)
        self.peer_quiet = True
        return self._settle()

    def on_peer_abort(self) -> list[Effect]:
        """D gave up; it posts nothing more, and acks when its last receive has ended."""
        if self.state in (SourceState.FREED, SourceState.ABORTED):
            return []
        self._go(SourceState.ABORTED)
        return [StopSequence(), *self._settle()]

    def on_abort_ack(self) -> list[Effect]:
        """D says that nothing of it is in flight there."""
        if self.state is SourceState.ABORTED:
            self.peer_quiet = True
        return self._settle()

    def abort(self, reason: str) -> list[Effect]:
        """Cancelled, finished at token 1, out of time, lease over. Safe to repeat."""
        if self.state in (SourceState.FREED, SourceState.ABORTED):
            return []
        self._go(SourceState.ABORTED)
        tell: list[Effect] = [TellAbort(reason)] if self.offered else []
        return [StopSequence(), *tell, *self._settle()]

    def on_pair_closed(self) -> list[Effect]:
        """The pair is destroyed: nothing can touch the blocks."""
        self.peer_quiet, self.in_flight = True, 0
        stop: list[Effect] = []
        if self.state not in (SourceState.FREED, SourceState.ABORTED):
            self._go(SourceState.ABORTED)
            stop = [StopSequence()]
        return [*stop, *self._settle()]

    def _announce(self) -> list[Effect]:
        if self.state is not SourceState.SENDING:
            return []
        effects: list[Effect] = []
        if self.announced < len(self.ready):
            fresh = self.ready[self.announced :]
            effects.append(TellReady(self.announced, tuple(b for b, _ in fresh), tuple(g for _, g in fresh)))
            self.announced = len(self.ready)
            self.peer_quiet = False
        if self.first_token_id is not None and len(self.ready) == self.num_blocks:
            self._go(SourceState.SENT)
            effects.append(TellComplete(self.first_token_id))
        return effects

    def _settle(self) -> list[Effect]:
        ended = self.state in (SourceState.FREED, SourceState.ABORTED)
        if not ended or self.done or self.in_flight or not self.peer_quiet:
            return []
        self.done = True
        return [FreeBlocks(committed=self.state is SourceState.FREED)]

    def _go(self, to: SourceState) -> None:
        if to not in SOURCE_NEXT[self.state]:
            raise InvariantViolation(f"handoff source cannot go {self.state.value} -> {to.value}")
        self.state = to
