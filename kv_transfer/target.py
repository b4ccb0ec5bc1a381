"""The decode worker's end of every handoff: promises room, fetches blocks, verifies, commits.

Each Handoff stream that a prefill worker opens is one pair with its own epoch, nonce and transport channel. Blocks are
fetched only when the source announced them and the engine set room aside; a receive that was posted is always awaited
to its end before its blocks may be freed. All on one event loop; nothing here blocks.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

from kv_transfer.notices import Committed, Failed, Freed, Identity, Notice, Stopped, first_error
from kv_transfer.rendezvous import StreamRendezvous
from kv_transfer.selection import SAME_HOST_ONLY
from kv_transfer.transports.interface import BlockMove, PairInfo, TargetChannel, Transport
from pdserve.errors import IncompatiblePeer, InvariantViolation, PeerLost, ServingError
from pdserve.ids import PROTOCOL_VERSION, SequenceKey
from pdserve.kv_memory import KvMemory
from pdserve.v1 import worker_pb2 as pb
from scheduling.handoff import (
    CommitSequence,
    Effect,
    FreeBlocks,
    Receive,
    StopSequence,
    TargetState,
    TargetTransfer,
    TellAbort,
    TellAbortAck,
    TellCommit,
    TellReserved,
)  # fmt: skip

log = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 10.0
OPEN_TIMEOUT_S = 10.0
MAX_EARLY_OFFERS = 4096


class HandoffTarget:
    """Every handoff that comes to this worker. Results come out of `notices`."""

    def __init__(
        self,
        identity: Identity,
        memory: KvMemory,
        transports: Mapping[str, Transport],
        notices: asyncio.Queue[Notice],
    ) -> None:
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

    @property
    def num_transfers(self) -> int:
        return len(self._expected)

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

    def source_lost(self, source_boot_id: bytes) -> None:
        """The router says that worker is gone: what it had not even offered will never come."""
        for incoming in list(self._expected.values()):
            if incoming.source_boot_id == source_boot_id and incoming.pair is None:
                self.notices.put_nowait(Failed(incoming.transfer.key, PeerLost("prefill worker lost")))
                self.carry_out(incoming, incoming.transfer.abort("prefill worker lost"))

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


class Incoming:
    """One expected handoff: its state machine, its pair once offered, and its clock."""

    def __init__(self, transfer: TargetTransfer, source_boot_id: bytes) -> None:
        self.transfer = transfer
        self.source_boot_id = source_boot_id
        self.pair: TargetPair | None = None
        self.first_block_s: float | None = None

    def committed(self, first_token_id: int, block_bytes: int) -> Committed:
        pair, transfer = self.pair, self.transfer
        assert pair is not None
        now = time.monotonic()
        elapsed = now - self.first_block_s if self.first_block_s is not None else 0.0
        return Committed(
            transfer.key, first_token_id, transfer.received * block_bytes, transfer.skip, elapsed,
            pair.source_worker_id, pair.transport_name,
        )  # fmt: skip


class TargetPair:
    """One prefill worker, from here: one stream, one epoch, one channel."""

    def __init__(self, target: HandoffTarget, epoch: int) -> None:
        self.target = target
        self.epoch = epoch
        self.source_boot_id = b""
        self.source_worker_id = "?"
        self.transport_name = "?"
        self.transfers: dict[int, Incoming] = {}
        self.outbox: asyncio.Queue[pb.TargetMessage | None] = asyncio.Queue()
        self._tags = itertools.count(2, 2)
        self._channel: TargetChannel | None = None
        self._task: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup | None = None
        self._opened = asyncio.Event()
        self._closing = False

    def start(self, messages: AsyncIterator[pb.SourceMessage]) -> asyncio.Task[None]:
        self._task = asyncio.create_task(self._run(messages))
        return self._task

    def close_soon(self) -> asyncio.Task[None] | None:
        """Begin to end the pair; safe to repeat: nothing interrupts its tearing down. The task that ends with it."""
        if self._task is not None and not self._closing:
            self._closing = True
            self._task.cancel()
        return self._task

    async def _run(self, messages: AsyncIterator[pb.SourceMessage]) -> None:
        """The pair's life. Raises IncompatiblePeer when the two can never talk."""
        loop = asyncio.get_running_loop()

        def send(key: str, value: bytes) -> None:
            message = pb.TargetMessage(rendezvous=pb.RendezvousSet(epoch=self.epoch, key=key, value=value))
            loop.call_soon_threadsafe(self.outbox.put_nowait, message)

        rendezvous = StreamRendezvous(send)
        error: ServingError = PeerLost(f"pair with {self.source_worker_id} closed")
        try:
            messages = aiter(messages)
            pair, transport = await self._greet(messages)
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._open(pair, transport, rendezvous))
                group.create_task(self._read(messages, rendezvous))
        except Exception as caught:
            error = first_error(caught, f"pair with {self.source_worker_id}")
            if isinstance(error, IncompatiblePeer):
                raise error from None
            log.info("%s", error.message)
        finally:
            self._closing = True
            rendezvous.close()
            if self._channel is not None:
                await self._channel.close()
            self.target.pair_closed(self, error)
            self.outbox.put_nowait(None)

    async def _greet(self, messages: AsyncIterator[pb.SourceMessage]) -> tuple[PairInfo, Transport]:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            first = await anext(messages)
        hello, me = first.hello, self.target.identity
        self.source_boot_id, self.source_worker_id = hello.source_boot_id, hello.source_worker_id
        if hello.protocol_version != PROTOCOL_VERSION:
            raise IncompatiblePeer(
                f"protocol version {hello.protocol_version!r}, this worker speaks {PROTOCOL_VERSION}"
            )
        if hello.target_boot_id != me.boot_id:
            raise PeerLost("hello for an earlier start of this worker")
        if hello.layout_fingerprint != me.fingerprint or hello.block_bytes != me.block_bytes:
            raise IncompatiblePeer(f"KV layout of {hello.source_worker_id} differs: another model, dtype or block size")
        same_host = hello.host_id == me.host_id
        usable = [n for n in hello.transports if n in self.target.transports and (same_host or n not in SAME_HOST_ONLY)]
        if not usable:
            raise IncompatiblePeer(f"no transport in common with {hello.source_worker_id}: {list(hello.transports)}")
        self.transport_name = usable[0]
        nonce = secrets.token_bytes(16)
        accept = pb.PairAccept(target_boot_id=me.boot_id, epoch=self.epoch, nonce=nonce, transport=self.transport_name)
        self.outbox.put_nowait(pb.TargetMessage(accept=accept))
        pair = PairInfo(hello.source_boot_id, me.boot_id, self.epoch, nonce, me.block_bytes)
        return pair, self.target.transports[self.transport_name]

    async def _open(self, pair: PairInfo, transport: Transport, rendezvous: StreamRendezvous) -> None:
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            self._channel = await transport.open_target(pair, rendezvous, self.target.memory)
        self._opened.set()
        await self._channel.wait_lost()
        raise PeerLost(f"{self.source_worker_id} is gone")

    async def _read(self, messages: AsyncIterator[pb.SourceMessage], rendezvous: StreamRendezvous) -> None:
        async for message in messages:
            kind = message.WhichOneof("message")
            if kind == "rendezvous":
                rendezvous.deliver(message.rendezvous.key, message.rendezvous.value)
            elif kind == "offer":
                offer = message.offer
                key = SequenceKey(offer.key.request_id, offer.key.attempt)
                self.target.offer(self, key, offer.transfer_id, offer.num_blocks)
            elif kind is not None:
                self._handle(kind, message)
        raise PeerLost(f"{self.source_worker_id} closed the pair")

    def _handle(self, kind: str, message: pb.SourceMessage) -> None:
        part = getattr(message, kind)
        incoming = self.transfers.get(getattr(part, "transfer_id", 0))
        if incoming is None:
            self.target.stale_messages += 1
            if kind == "abort":
                self.target.withdraw(self, part.transfer_id)
                self.tell(part.transfer_id, TellAbortAck())
            return
        match kind:
            case "ready":
                effects = incoming.transfer.on_ready(part.first, part.block_ids, part.generations)
            case "complete":
                effects = incoming.transfer.on_complete(part.first_token_id)
            case "abort":
                effects = incoming.transfer.on_peer_abort()
                self.target.notices.put_nowait(Failed(incoming.transfer.key, PeerLost(f"handoff ended: {part.reason}")))
            case _:
                raise InvariantViolation(f"unexpected {kind} from {self.source_worker_id}")
        self.target.carry_out(incoming, effects)

    def receive(self, incoming: Incoming, effect: Receive) -> None:
        """Fetch announced blocks; the receive is awaited to its end whatever happens to the transfer."""
        assert self._group is not None
        if incoming.first_block_s is None:
            incoming.first_block_s = time.monotonic()
        self._group.create_task(self._receive(incoming, effect))

    async def _receive(self, incoming: Incoming, effect: Receive) -> None:
        transfer = incoming.transfer
        assert transfer.transfer_id is not None
        await self._opened.wait()
        assert self._channel is not None
        if transfer.state is TargetState.ABORTED:  # nothing was posted, nothing will come
            self.target.carry_out(incoming, transfer.on_received(len(effect.indices)))
            return
        tags = [next(self._tags) for _ in effect.indices]
        moves = [
            BlockMove(*move)
            for move in zip(
                effect.indices, tags, effect.source_blocks, effect.generations, effect.target_blocks, strict=True
            )
        ]
        receipt = self._channel.post(transfer.transfer_id, moves)
        if self._channel.pushed:
            credit = pb.Credit(transfer_id=transfer.transfer_id, indices=effect.indices, tags=tags)
            self.outbox.put_nowait(pb.TargetMessage(credit=credit))
        await receipt.wait()  # an error here is the end of the pair: what it carried cannot be trusted
        self.target.carry_out(incoming, transfer.on_received(len(moves)))

    def refuse(self, transfer_id: int, reason: str) -> None:
        self.tell(transfer_id, TellAbort(reason))
        self.tell(transfer_id, TellAbortAck())

    def tell(self, transfer_id: int, effect: Effect) -> None:
        match effect:
            case TellReserved(skip):
                message = pb.TargetMessage(reserved=pb.Reserved(transfer_id=transfer_id, skip_blocks=skip))
            case TellCommit():
                message = pb.TargetMessage(commit=pb.Commit(transfer_id=transfer_id))
            case TellAbort(reason):
                message = pb.TargetMessage(abort=pb.TransferAbort(transfer_id=transfer_id, reason=reason))
            case TellAbortAck():
                message = pb.TargetMessage(abort_ack=pb.TransferAbort(transfer_id=transfer_id))
            case _:
                raise InvariantViolation(f"not for the source: {effect}")
        self.outbox.put_nowait(message)
