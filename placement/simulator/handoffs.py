"""Handoffs: the real state machines of both sides; messages take their delay, blocks their time on the link."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pdserve.ids import SequenceKey
from placement.simulator.events import EventQueue
from placement.simulator.links import Links
from placement.simulator.worker import SimWorker
from scheduling.handoff import (
    CommitSequence,
    Effect,
    FreeBlocks,
    Receive,
    SourceTransfer,
    StopSequence,
    TargetTransfer,
    TellAbort,
    TellAbortAck,
    TellCommit,
    TellComplete,
    TellOffer,
    TellReady,
    TellReserved,
)


@dataclass(slots=True, eq=False)
class _Handoff:
    source: SimWorker
    target: SimWorker
    sending: SourceTransfer
    receiving: TargetTransfer
    source_freed: bool = False
    target_freed: bool = False


class Handoffs:
    """Every handoff under way. `on_committed` and `on_freed` are called at the worker's instant."""

    def __init__(
        self,
        events: EventQueue,
        links: Links,
        message_s: float,
        block_bytes: int,
        on_committed: Callable[[SequenceKey], None],
        on_freed: Callable[[SimWorker, SequenceKey], None],
    ) -> None:
        self._events = events
        self._links = links
        self._message_s = message_s
        self._block_bytes = block_bytes
        self._on_committed = on_committed
        self._on_freed = on_freed
        self._by_key: dict[SequenceKey, _Handoff] = {}
        self._ids = itertools.count(1)

    def __len__(self) -> int:
        return len(self._by_key)

    def begin(self, key: SequenceKey, source: SimWorker, target: SimWorker, num_blocks: int) -> None:
        """Both workers have just been told of the sequence."""
        sending = SourceTransfer(key, next(self._ids), num_blocks)
        handoff = self._by_key[key] = _Handoff(source, target, sending, TargetTransfer(key))
        self._from_source(handoff, sending.offer())

    def on_room(self, key: SequenceKey, block_ids: tuple[int, ...], skip: int) -> None:
        """The target's engine has set blocks aside."""
        if (handoff := self._by_key.get(key)) is not None:
            self._from_target(handoff, handoff.receiving.on_room(block_ids, skip))

    def on_blocks_ready(
        self, key: SequenceKey, first: int, block_ids: tuple[int, ...], generations: tuple[int, ...]
    ) -> None:
        """The source's engine has computed blocks."""
        if (handoff := self._by_key.get(key)) is not None and not handoff.sending.done:
            self._from_source(handoff, handoff.sending.on_ready(first, block_ids, generations))

    def on_first_token(self, key: SequenceKey, token_id: int) -> None:
        """The source has token 1, and the sequence goes on."""
        if (handoff := self._by_key.get(key)) is not None:
            self._from_source(handoff, handoff.sending.on_first_token(token_id))

    def abort(self, key: SequenceKey, worker: SimWorker, reason: str) -> bool:
        """End a handoff from one side; False when that side has none, so that its engine alone is concerned."""
        handoff = self._by_key.get(key)
        if handoff is None:
            return False
        if worker is handoff.source and not handoff.source_freed:
            self._from_source(handoff, handoff.sending.abort(reason))
            return True
        if worker is handoff.target and not handoff.target_freed:
            self._from_target(handoff, handoff.receiving.abort(reason))
            return True
        return False

    def worker_lost(self, worker: SimWorker) -> list[tuple[SimWorker, SequenceKey]]:
        """Its pairs are destroyed; who has to give up which sequence for that, and will say so."""
        failed = []
        for handoff in [one for one in self._by_key.values() if worker in (one.source, one.target)]:
            if worker is handoff.target:
                handoff.target_freed = True
                other, effects = handoff.source, handoff.sending.on_pair_closed()
                self._from_source(handoff, effects)
            else:
                handoff.source_freed = True
                other, effects = handoff.target, handoff.receiving.on_pair_closed()
                self._from_target(handoff, effects)
            if any(isinstance(effect, StopSequence) for effect in effects):
                failed.append((other, handoff.sending.key))
            self._settle(handoff)
        return failed

    # ---- effects ----

    def _tell(self, action: Callable[..., None], *args: object) -> None:
        self._events.after(self._message_s, action, *args)

    def _from_source(self, handoff: _Handoff, effects: list[Effect]) -> None:
        receiving, key = handoff.receiving, handoff.sending.key
        for effect in effects:
            match effect:
                case TellOffer(num_blocks):
                    offer = partial(receiving.on_offer, handoff.sending.transfer_id, num_blocks)
                    self._tell(self._at_target, handoff, offer)
                case TellReady(first, block_ids, generations):
                    self._tell(self._at_target, handoff, partial(receiving.on_ready, first, block_ids, generations))
                case TellComplete(token_id):
                    self._tell(self._at_target, handoff, partial(receiving.on_complete, token_id))
                case TellAbort():
                    self._tell(self._at_target, handoff, receiving.on_peer_abort)
                case StopSequence():
                    handoff.source.put(partial(handoff.source.scheduler.quarantine, key))
                case FreeBlocks():
                    handoff.source.put(partial(handoff.source.scheduler.abort, key))
                    handoff.source_freed = True
                    if handoff.source.alive:
                        self._on_freed(handoff.source, key)
        self._settle(handoff)

    def _from_target(self, handoff: _Handoff, effects: list[Effect]) -> None:
        sending, key, target = handoff.sending, handoff.sending.key, handoff.target
        for effect in effects:
            match effect:
                case TellReserved(skip):
                    self._tell(self._at_source, handoff, partial(sending.on_reserved, skip))
                case TellCommit():
                    self._tell(self._at_source, handoff, sending.on_commit)
                case TellAbort():
                    self._tell(self._at_source, handoff, sending.on_peer_abort)
                case TellAbortAck():
                    self._tell(self._at_source, handoff, sending.on_abort_ack)
                case Receive(indices):
                    received = partial(self._received, handoff, len(indices))
                    names = (handoff.source.spec.worker_id, target.spec.worker_id)
                    self._links.move(*names, len(indices) * self._block_bytes, received)
                case CommitSequence(token_id):
                    target.put(partial(target.commit, key, token_id))
                    handoff.target_freed = True
                    self._on_committed(key)
                case StopSequence():
                    target.put(partial(target.scheduler.quarantine, key))
                case FreeBlocks():
                    target.put(partial(target.scheduler.abort, key))
                    handoff.target_freed = True
        self._settle(handoff)

    def _at_source(self, handoff: _Handoff, event: Callable[[], list[Effect]]) -> None:
        if handoff.source.alive:
            self._from_source(handoff, event())

    def _at_target(self, handoff: _Handoff, event: Callable[[], list[Effect]]) -> None:
        if handoff.target.alive:
            self._from_target(handoff, event())

    def _received(self, handoff: _Handoff, count: int) -> None:
        if handoff.target.alive and handoff.receiving.in_flight >= count:
            self._from_target(handoff, handoff.receiving.on_received(count))

    def _settle(self, handoff: _Handoff) -> None:
        """Forget it when neither side has anything of it left."""
        if (handoff.source_freed or not handoff.source.alive) and (handoff.target_freed or not handoff.target.alive):
            self._by_key.pop(handoff.sending.key, None)
