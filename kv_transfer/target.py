"""The decode worker's end of every handoff: promises room, fetches blocks, verifies, commits.

Each Handoff stream that a prefill worker opens is one pair with its own epoch, nonce and transport channel. Blocks are
fetched only when the source announced them and the engine set room aside; a receive that was posted is always awaited
to its end before its blocks may be freed. All on one event loop; nothing here blocks.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence

from kv_transfer.agreement import UnusableTransports
from kv_transfer.notices import Failed, Freed, Identity, Notice, Stopped
from kv_transfer.target_pair import Incoming, TargetPair
from kv_transfer.transports.interface import Transport
from pdserve.errors import ServingError
from pdserve.ids import SequenceKey
from pdserve.kv_memory import KvMemory
from pdserve.v1 import worker_pb2 as pb
from scheduling.handoff import (
    CommitSequence,
    Effect,
    FreeBlocks,
    Receive,
    StopSequence,
    TargetTransfer,
)  # fmt: skip

log = logging.getLogger(__name__)

MAX_EARLY_OFFERS = 4096


class HandoffTarget:
    """Every handoff that comes to this worker. Results come out of `notices`."""

    def __init__(
        self,
        identity: Identity,
        memory: KvMemory,
        transports: Mapping[str, Transport],
        notices: asyncio.Queue[Notice],
        reaches: Callable[[str], bool],
    ) -> None:
        """`reaches`: can this worker's GPU read the memory of the GPU with that UUID? May block."""
        self.reaches = reaches
        self.unusable = UnusableTransports()  # by source
        self.identity = identity
        self.memory = memory
        self.transports = transports
        self.notices = notices
        self.stale_messages = 0
        self._epochs = itertools.count(1)
        self._expected: dict[SequenceKey, Incoming] = {}
        self._early_offers: dict[SequenceKey, tuple[TargetPair, int, int]] = {}
        self._pairs: set[TargetPair] = set()

    def expect(self, key: SequenceKey, source_boot_id: bytes) -> None:
        """The router announced a sequence that `source_boot_id` will hand over; called once per key."""
        incoming = self._expected[key] = Incoming(TargetTransfer(key), source_boot_id)
        early = self._early_offers.pop(key, None)
        if early is not None:
            self._offered(incoming, *early)

    def on_room(self, key: SequenceKey, block_ids: Sequence[int], skip: int) -> None:
        """The engine set these blocks aside for the whole prompt; the first `skip` hold its KV already."""
        incoming = self._expected.get(key)
        if incoming is not None:
            self.carry_out(incoming, incoming.transfer.on_room(block_ids, skip))

    def abort(self, key: SequenceKey, reason: str) -> bool:
        """End a handoff from this side; `Freed` follows when its blocks are safe. False when there is none."""
        incoming = self._expected.get(key)
        if incoming is None:
            return False
        self.carry_out(incoming, incoming.transfer.abort(reason))
        return True

    async def serve_pair(self, incoming: AsyncIterator[pb.SourceMessage]) -> AsyncGenerator[pb.TargetMessage, None]:
        """Serve one Handoff stream: yields what to answer, until the pair ends."""
        pair = TargetPair(self, next(self._epochs))
        self._pairs.add(pair)
        task = pair.start(incoming)
        try:
            while (message := await pair.outbox.get()) is not None:
                yield message
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()
        finally:
            pair.close_soon()
            await asyncio.wait({task})
            self._pairs.discard(pair)

    def offer(self, pair: TargetPair, key: SequenceKey, transfer_id: int, num_blocks: int) -> None:
        """A source computes this prompt."""
        incoming = self._expected.get(key)
        if incoming is not None:
            self._offered(incoming, pair, transfer_id, num_blocks)
        elif len(self._early_offers) < MAX_EARLY_OFFERS:
            self._early_offers[key] = (pair, transfer_id, num_blocks)
        else:
            pair.refuse(transfer_id, "too many offers of unknown requests")

    def _offered(self, incoming: Incoming, pair: TargetPair, transfer_id: int, num_blocks: int) -> None:
        if pair.source_boot_id != incoming.source_boot_id or incoming.pair is not None:
            self.stale_messages += 1
            pair.refuse(transfer_id, "offer by another worker than the router named")
            return
        incoming.pair = pair
        pair.transfers[transfer_id] = incoming
        self.carry_out(incoming, incoming.transfer.on_offer(transfer_id, num_blocks))

    def withdraw(self, pair: TargetPair, transfer_id: int) -> None:
        """The source gave up an offer that no sequence was expected for."""
        for key, (other, tid, _) in list(self._early_offers.items()):
            if other is pair and tid == transfer_id:
                del self._early_offers[key]

    def pair_closed(self, pair: TargetPair, error: ServingError) -> None:
        """Nothing of the pair touches memory any more."""
        for key, (other, _, _) in list(self._early_offers.items()):
            if other is pair:
                del self._early_offers[key]
        for incoming in list(pair.transfers.values()):
            effects = incoming.transfer.on_pair_closed()
            if any(isinstance(effect, StopSequence) for effect in effects):
                self.notices.put_nowait(Failed(incoming.transfer.key, error))
            self.carry_out(incoming, effects)

    def carry_out(self, incoming: Incoming, effects: list[Effect]) -> None:
        """Do what the state machine said."""
        transfer, pair = incoming.transfer, incoming.pair
        for effect in effects:
            match effect:
                case Receive():
                    assert pair is not None
                    pair.receive(incoming, effect)
                case CommitSequence(first_token_id):
                    self._expected.pop(transfer.key, None)
                    self.notices.put_nowait(incoming.committed(first_token_id, self.identity.block_bytes))
                case StopSequence():
                    self.notices.put_nowait(Stopped(transfer.key))
                case FreeBlocks():
                    self._expected.pop(transfer.key, None)
                    self.notices.put_nowait(Freed(transfer.key, committed=False))
                case _ if pair is not None and transfer.transfer_id is not None:
                    pair.tell(transfer.transfer_id, effect)
        if transfer.done and pair is not None and transfer.transfer_id is not None:
            pair.transfers.pop(transfer.transfer_id, None)

    async def close(self) -> None:
        """End every pair and wait until none can touch memory."""
        tasks = {task for pair in self._pairs if (task := pair.close_soon()) is not None}
        if tasks:
            await asyncio.wait(tasks)
