"""Every sequence of which something is left on this worker: how it begins, who hears of it, and how it ends.

A sequence has a lease, renewed by the router, and perhaps a handoff. Its blocks are freed (`Release`) at once, or when
the handoff says that no transfer can touch them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from engine.core import Release
from engine.thread import EngineThread
from kv_transfer.notices import PeerAddress
from kv_transfer.source import HandoffSource
from kv_transfer.target import HandoffTarget
from pdserve.clock import Clock
from pdserve.errors import LeaseExpired, ServingError
from pdserve.ids import SequenceKey
from pdserve.v1 import worker_pb2 as pb
from scheduling.lease import LEASE_S, LeaseTable
from scheduling.sequence import SequenceMode
from worker.outbox import Outbox


@dataclass(slots=True)
class Tracked:
    """What the worker remembers of a sequence until nothing of it is left here."""

    mode: SequenceMode
    outbox: Outbox
    handed: bool = False  # DECODE: committed; its handoff is over
    told_end: bool = False  # the router was told a finish reason or a failure


class TrackedSequences:
    """Belongs to the event loop; only `idle` waits."""

    def __init__(
        self, thread: EngineThread, source: HandoffSource, target: HandoffTarget, clock: Clock, block_size: int
    ) -> None:
        self.by_key: dict[SequenceKey, Tracked] = {}
        self._thread, self._source, self._target = thread, source, target
        self._block_size = block_size
        self._leases: LeaseTable[SequenceKey] = LeaseTable(clock)
        self._emptied = asyncio.Event()

    async def idle(self) -> None:
        """Return when nothing of any sequence is left here."""
        while self.by_key:
            self._emptied.clear()
            await self._emptied.wait()

    def begin(self, key: SequenceKey, mode: SequenceMode, submit: pb.SubmitSequence, outbox: Outbox) -> Tracked:
        """Remember it, lease it, and announce it to its handoff; called once per key, before the engine hears of it."""
        tracked = self.by_key[key] = Tracked(mode, outbox)
        self._leases.grant(key)
        if mode is SequenceMode.PREFILL:
            num_tokens = len(submit.prompt_token_ids) + len(submit.output_token_ids)
            peer = PeerAddress(submit.peer.worker_id, submit.peer.boot_id, submit.peer.address)
            self._source.begin(key, peer, -(-num_tokens // self._block_size))
        elif mode is SequenceMode.DECODE:
            self._target.expect(key, submit.peer.boot_id)
        return tracked

    def renew(self, key: SequenceKey) -> None:
        self._leases.renew(key)

    def fail_expired(self) -> None:
        """End those whose lease has run out."""
        for key in self._leases.expired():
            self.fail(key, LeaseExpired(f"not renewed for {LEASE_S:g} s"))

    def finish(self, key: SequenceKey, tracked: Tracked) -> None:
        """The engine ended it; a prefill's blocks wait until its handoff is called off."""
        self._end(key, tracked, "finished")

    def fail(self, key: SequenceKey, error: ServingError) -> None:
        """End it, the router is told why."""
        tracked = self.by_key.get(key)
        if tracked is None:
            return
        if not tracked.told_end:
            tracked.outbox.tell_failed(key, error)
        self._end(key, tracked, error.message)

    def abort(self, key: SequenceKey, reason: str) -> None:
        """End it, the router wants no more of it; nothing to do when nothing is left here."""
        tracked = self.by_key.get(key)
        if tracked is not None:
            self._end(key, tracked, reason)

    def abort_all(self, reason: str, outbox: Outbox | None = None) -> None:
        """End all, or all that one session asked for."""
        for key, tracked in list(self.by_key.items()):
            if outbox is None or tracked.outbox is outbox:
                self._end(key, tracked, reason)

    def forget(self, key: SequenceKey) -> None:
        """Nothing of it is left here. Safe to repeat."""
        self.by_key.pop(key, None)
        self._leases.release(key)
        if not self.by_key:
            self._emptied.set()

    def _end(self, key: SequenceKey, tracked: Tracked, reason: str) -> None:
        """Its blocks are freed at once, or as soon as no transfer can touch them."""
        tracked.told_end = True
        if not self._end_handoff(key, tracked, reason):
            self._thread.put(Release(key))
            self.forget(key)

    def _end_handoff(self, key: SequenceKey, tracked: Tracked, reason: str) -> bool:
        """Abort the sequence's handoff; False when it has none, so that its blocks are nobody else's concern."""
        if tracked.mode is SequenceMode.PREFILL:
            return self._source.abort(key, reason)
        return tracked.mode is SequenceMode.DECODE and not tracked.handed and self._target.abort(key, reason)
