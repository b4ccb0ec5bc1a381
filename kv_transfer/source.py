"""The prefill worker's end of every handoff: offers, announces blocks, sends what was credited, frees after the commit.

One pair per decode worker (source_pair.py), made on demand. All on one event loop; nothing here blocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from kv_transfer.agreement import UnusableTransports
from kv_transfer.notices import Identity, Notice, PeerAddress
from kv_transfer.source_pair import Connect, SourcePair
from kv_transfer.transports.interface import Transport
from pdserve.ids import SequenceKey
from pdserve.kv_memory import KvMemory
from scheduling.handoff import SourceTransfer

MAX_PAIRS = 64


class HandoffSource:
    """Every handoff that leaves this worker. Results come out of `notices`."""

    def __init__(
        self,
        identity: Identity,
        memory: KvMemory,
        transports: Mapping[str, Transport],
        connect: Connect,
        notices: asyncio.Queue[Notice],
    ) -> None:
        self.identity = identity
        self.memory = memory
        self.transports = transports
        self.connect = connect
        self.notices = notices
        self.stale_messages = 0
        self.unusable = UnusableTransports()  # by target
        self._pairs: dict[bytes, SourcePair] = {}
        self._by_key: dict[SequenceKey, tuple[SourcePair, SourceTransfer]] = {}

    def begin(self, key: SequenceKey, peer: PeerAddress, num_blocks: int) -> None:
        """A prompt of `num_blocks` blocks is about to be computed for `peer`; called once per key, before any event."""
        pair = self._pairs.get(peer.boot_id)
        if pair is None or pair.closing:
            pair = self._pairs[peer.boot_id] = SourcePair(self, peer)
            self._close_idle_pairs()
        transfer = SourceTransfer(key, pair.next_transfer_id(), num_blocks)
        self._by_key[key] = (pair, transfer)
        pair.add(transfer)

    def on_blocks_ready(
        self, key: SequenceKey, first: int, block_ids: Sequence[int], generations: Sequence[int]
    ) -> None:
        """The engine completed these blocks of the prompt."""
        found = self._by_key.get(key)
        if found is not None and not found[1].done:
            found[0].carry_out(found[1], found[1].on_ready(first, block_ids, generations))

    def on_first_token(self, key: SequenceKey, token_id: int) -> None:
        """Token 1 was sampled and the sequence goes on."""
        found = self._by_key.get(key)
        if found is not None:
            found[0].carry_out(found[1], found[1].on_first_token(token_id))

    def abort(self, key: SequenceKey, reason: str) -> bool:
        """End a handoff from this side; `Freed` follows when its blocks are safe. False when there is none."""
        found = self._by_key.get(key)
        if found is None:
            return False
        found[0].carry_out(found[1], found[1].abort(reason))
        return True

    def forget(self, key: SequenceKey) -> None:
        """A transfer is done."""
        self._by_key.pop(key, None)

    def drop_pair(self, pair: SourcePair) -> None:
        """A pair is closing: the next handoff to that worker makes another."""
        if self._pairs.get(pair.peer.boot_id) is pair:
            del self._pairs[pair.peer.boot_id]

    async def close(self) -> None:
        """Close every pair and wait until none can touch memory."""
        for pair in list(self._pairs.values()):
            await pair.close("worker stops")

    def _close_idle_pairs(self) -> None:
        idle = [p for p in self._pairs.values() if not p.transfers and not p.closing]
        for pair in idle[: max(0, len(self._pairs) - MAX_PAIRS)]:
            pair.close_soon("idle")
