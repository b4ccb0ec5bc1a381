"""Both sides of a handoff as pure state machines: an event goes in, effects come out, the shell carries them out.

    P (source):  HOLDING ── reserved ──> SENDING ── last block announced ──> SENT ── commit read ──> FREED
    D (target):  WAITING ── room ──> RESERVED ── first block ──> RECEIVING ── all verified ──> COMMITTED
    both:        ABORTED from every state but the last

Two rules make it safe. A block that was credited is always sent, whatever happens meanwhile, unless its pair is
destroyed: so a posted receive always ends. And blocks are given back only when nothing can touch them any more: the
source waits for its own sends and for the target's word, the target for its own receives; a destroyed pair is proof of
both (RELIABILITY section 4.3; DESIGN section 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from pdserve.errors import InvariantViolation
from pdserve.ids import SequenceKey


class SourceState(Enum):
    """P's side."""

    HOLDING = "holding"  # P owns the blocks; D has not promised room, no byte has moved
    SENDING = "sending"  # P owns the blocks; D may read or be sent those announced
    SENT = "sent"  # P owns the blocks; every one is announced, and token 1; D has not committed
    FREED = "freed"  # the commit was read: P's blocks are free as soon as its last send has returned
    ABORTED = "aborted"  # P owns the blocks until nothing is in flight and D is quiet, then they are free


class TargetState(Enum):
    """D's side."""

    WAITING = "waiting"  # D owns nothing of it
    RESERVED = "reserved"  # D owns blocks set aside; no byte has moved
    RECEIVING = "receiving"  # D owns the blocks, but nobody may read them: bytes arrive
    COMMITTED = "committed"  # D owns the sequence; P frees
    ABORTED = "aborted"  # D owns the blocks until its last receive has ended, then they are free


_S, _T = SourceState, TargetState
SOURCE_NEXT = {
    _S.HOLDING: {_S.SENDING, _S.ABORTED},
    _S.SENDING: {_S.SENT, _S.ABORTED},
    _S.SENT: {_S.FREED, _S.ABORTED},
    _S.FREED: set(),
    _S.ABORTED: set(),
}
TARGET_NEXT = {
    _T.WAITING: {_T.RESERVED, _T.ABORTED},
    _T.RESERVED: {_T.RECEIVING, _T.COMMITTED, _T.ABORTED},
    _T.RECEIVING: {_T.COMMITTED, _T.ABORTED},
    _T.COMMITTED: set(),
    _T.ABORTED: set(),
}


# ---- effects: what the shell must do, in order ----


@dataclass(frozen=True, slots=True)
class TellOffer:
    """P -> D: the prompt is being computed."""

    num_blocks: int


@dataclass(frozen=True, slots=True)
class TellReady:
    """P -> D: these blocks are complete; indices first, first + 1, ..."""

    first: int
    block_ids: tuple[int, ...]
    generations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TellComplete:
    """P -> D: the prompt is computed; this is token 1."""

    first_token_id: int


@dataclass(frozen=True, slots=True)
class TellReserved:
    """D -> P: there is room; the first `skip` blocks are here already."""

    skip: int


@dataclass(frozen=True, slots=True)
class TellCommit:
    """D -> P: D owns the sequence."""


@dataclass(frozen=True, slots=True)
class TellAbort:
    """To the peer: it is off."""

    reason: str


@dataclass(frozen=True, slots=True)
class TellAbortAck:
    """To the peer: nothing of it is in flight here any more."""


@dataclass(frozen=True, slots=True)
class Send:
    """P: send these credited blocks, then report `on_sent(len)`."""

    indices: tuple[int, ...]
    tags: tuple[int, ...]
    block_ids: tuple[int, ...]
    generations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Receive:
    """D: post receives for these blocks (and credit them), then report `on_received(len)` or abort."""

    indices: tuple[int, ...]
    source_blocks: tuple[int, ...]
    generations: tuple[int, ...]
    target_blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CommitSequence:
    """D: every block is verified; the engine may run the sequence from this token on."""

    first_token_id: int


@dataclass(frozen=True, slots=True)
class StopSequence:
    """The engine must not touch the sequence any more, but its blocks stay: a transfer may still use them."""


@dataclass(frozen=True, slots=True)
class FreeBlocks:
    """Nothing can touch the blocks: the engine frees them. The last effect of a transfer."""

    committed: bool  # P: the handoff succeeded


Effect = (
    TellOffer | TellReady | TellComplete | TellReserved | TellCommit | TellAbort | TellAbortAck
    | Send | Receive | CommitSequence | StopSequence | FreeBlocks
)  # fmt: skip


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
