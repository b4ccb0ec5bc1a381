"""One prefill worker, seen from a decode worker: one control stream, one epoch, one transport channel."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

from kv_transfer.agreement import Agreement, UnusableTransports, agree, place_of
from kv_transfer.control_messages import message_to_source
from kv_transfer.greeting import check_hello
from kv_transfer.notices import Committed, Identity, first_error
from kv_transfer.rendezvous import StreamRendezvous
from kv_transfer.transports.framing import give_tags
from kv_transfer.transports.interface import BlockMove, CannotOpen, PairInfo, TargetChannel, Transport
from pdserve.errors import IncompatiblePeer, InvariantViolation, PeerLost, ServingError
from pdserve.ids import SequenceKey
from pdserve.kv_memory import KvMemory
from pdserve.v1 import worker_pb2 as pb
from scheduling.handoff import Effect, Receive, TargetState, TargetTransfer, TellAbortAck

log = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 10.0
OPEN_TIMEOUT_S = 10.0


class PairOwner(Protocol):
    """Who a pair belongs to: it knows the sequences, the pair only the wire."""

    identity: Identity
    memory: KvMemory
    transports: Mapping[str, Transport]
    reaches: Callable[[str], bool]
    unusable: UnusableTransports
    stale_messages: int

    def offer(self, pair: TargetPair, key: SequenceKey, transfer_id: int, num_blocks: int) -> None: ...

    def withdraw(self, pair: TargetPair, transfer_id: int) -> None: ...

    def carry_out(self, incoming: Incoming, effects: list[Effect]) -> None: ...

    def pair_closed(self, pair: TargetPair, error: ServingError) -> None: ...


class Incoming:
    """One expected handoff: its state machine, its pair once offered, and its clock."""

    def __init__(self, transfer: TargetTransfer, source_boot_id: bytes) -> None:
        self.transfer = transfer
        self.source_boot_id = source_boot_id
        self.pair: TargetPair | None = None
        self.first_block_s: float | None = None
        self.busy_s = 0.0

    def committed(self, first_token_id: int, block_bytes: int) -> Committed:
        pair, transfer = self.pair, self.transfer
        assert pair is not None
        now = time.monotonic()
        elapsed = now - self.first_block_s if self.first_block_s is not None else 0.0
        return Committed(
            transfer.key, first_token_id, transfer.received * block_bytes, transfer.skip, elapsed,
            self.busy_s, pair.source_worker_id, pair.transport_name,
        )  # fmt: skip


class TargetPair:
    """One prefill worker, from here: one stream, one epoch, one channel."""

    def __init__(self, owner: PairOwner, epoch: int) -> None:
        self.owner = owner
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
        self._has_another = False

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
            self.owner.pair_closed(self, error)
            self.outbox.put_nowait(None)

    async def _greet(self, messages: AsyncIterator[pb.SourceMessage]) -> tuple[PairInfo, Transport]:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            first = await anext(messages)
        hello, me = first.hello, self.owner.identity
        self.source_boot_id, self.source_worker_id = hello.source_boot_id, hello.source_worker_id
        check_hello(hello, me)
        agreed = await self._agree(hello)
        self.transport_name, self._has_another = agreed.transport, agreed.has_another
        nonce = secrets.token_bytes(16)
        accept = pb.PairAccept(target_boot_id=me.boot_id, epoch=self.epoch, nonce=nonce, transport=self.transport_name)
        self.outbox.put_nowait(pb.TargetMessage(accept=accept))
        pair = PairInfo(hello.source_boot_id, me.boot_id, self.epoch, nonce, me.block_bytes)
        return pair, self.owner.transports[self.transport_name]

    async def _agree(self, hello: pb.PairHello) -> Agreement:
        me, owner, peer_access = self.owner.identity, self.owner, False
        if me.gpu_uuid and hello.gpu_uuid and hello.host_id == me.host_id:
            peer_access = await asyncio.to_thread(owner.reaches, hello.gpu_uuid)
        refused = owner.unusable.of(hello.source_boot_id)
        return agree(owner.transports, place_of(me), hello, refused, peer_access=peer_access)

    async def _open(self, pair: PairInfo, transport: Transport, rendezvous: StreamRendezvous) -> None:
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                self._channel = await transport.open_target(pair, rendezvous, self.owner.memory)
        except (IncompatiblePeer, CannotOpen, RuntimeError) as error:
            if not self._has_another:
                raise
            self.owner.unusable.add(self.source_boot_id, self.transport_name)
            log.warning("%s with %s cannot be opened: %s", self.transport_name, self.source_worker_id, error)
            raise PeerLost(f"{self.transport_name} cannot be opened: the next pair takes another") from error
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
                self.owner.offer(self, key, offer.transfer_id, offer.num_blocks)
            elif kind is not None:
                self._handle(kind, message)
        raise PeerLost(f"{self.source_worker_id} closed the pair")

    def _handle(self, kind: str, message: pb.SourceMessage) -> None:
        part = getattr(message, kind)
        incoming = self.transfers.get(getattr(part, "transfer_id", 0))
        if incoming is None:
            self.owner.stale_messages += 1
            if kind == "abort":
                self.owner.withdraw(self, part.transfer_id)
                self.tell(part.transfer_id, TellAbortAck())
            return
        match kind:
            case "ready":
                effects = incoming.transfer.on_ready(part.first, part.block_ids, part.generations)
            case "complete":
                effects = incoming.transfer.on_complete(part.first_token_id)
            case "abort":
                effects = incoming.transfer.on_peer_abort()  # the source tells the router why
            case _:
                raise InvariantViolation(f"unexpected {kind} from {self.source_worker_id}")
        self.owner.carry_out(incoming, effects)

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
            self.owner.carry_out(incoming, transfer.on_received(len(effect.indices)))
            return
        tags = give_tags(effect.source_blocks, effect.target_blocks, self.owner.memory.block_bytes, self._tags)
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
        posted_s = time.monotonic()
        await receipt.wait()  # an error here is the end of the pair: what it carried cannot be trusted
        incoming.busy_s += time.monotonic() - posted_s
        self.owner.carry_out(incoming, transfer.on_received(len(moves)))

    def refuse(self, transfer_id: int, reason: str) -> None:
        """Nobody here waits for this transfer."""
        abort = pb.TransferAbort(transfer_id=transfer_id, reason=reason, unreported=True)
        self.outbox.put_nowait(pb.TargetMessage(abort=abort))
        self.tell(transfer_id, TellAbortAck())

    def tell(self, transfer_id: int, effect: Effect) -> None:
        self.outbox.put_nowait(message_to_source(transfer_id, effect))
