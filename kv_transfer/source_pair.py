"""One decode worker, seen from a prefill worker: one control stream, one transport channel, one epoch.

A pair is thrown away on any error or timeout, and with it everything that was under way on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

from kv_transfer.agreement import UnusableTransports
from kv_transfer.control_messages import message_to_target
from kv_transfer.greeting import hello_to
from kv_transfer.notices import Failed, Freed, Identity, Notice, PeerAddress, Stopped, first_error
from kv_transfer.rendezvous import StreamRendezvous
from kv_transfer.transports.interface import BlockMove, CannotOpen, PairInfo, SourceChannel, Transport
from pdserve.errors import IncompatiblePeer, InvariantViolation, PeerLost, ServingError
from pdserve.ids import SequenceKey
from pdserve.kv_memory import KvMemory
from pdserve.v1 import worker_pb2 as pb
from scheduling.handoff import Effect, FreeBlocks, Send, SourceTransfer, StopSequence

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0


class HandoffStream(Protocol):
    """An open Handoff call."""

    def __aiter__(self) -> AsyncIterator[pb.TargetMessage]: ...

    def cancel(self) -> bool: ...


Connect = Callable[[str, AsyncIterator[pb.SourceMessage]], HandoffStream]
"""Opens the Handoff stream to an address with the cluster's secret; the worker gives it."""


class PairOwner(Protocol):
    """Who a pair belongs to: it knows the sequences, the pair only the wire."""

    identity: Identity
    memory: KvMemory
    transports: Mapping[str, Transport]
    connect: Connect
    notices: asyncio.Queue[Notice]
    unusable: UnusableTransports
    stale_messages: int

    def forget(self, key: SequenceKey) -> None: ...

    def drop_pair(self, pair: SourcePair) -> None: ...


class SourcePair:
    """One decode worker, from here."""

    def __init__(self, owner: PairOwner, peer: PeerAddress) -> None:
        self.owner = owner
        self.peer = peer
        self.transfers: dict[int, SourceTransfer] = {}
        self.closing = False
        self._ids = itertools.count(1)
        self._outbox: asyncio.Queue[pb.SourceMessage | None] = asyncio.Queue()
        self._sends: asyncio.Queue[tuple[SourceTransfer, Send]] = asyncio.Queue()
        self._accepted = False
        self._channel: SourceChannel | None = None
        self._reason = "closed"
        self._task = asyncio.create_task(self._run())

    def next_transfer_id(self) -> int:
        return next(self._ids)

    def add(self, transfer: SourceTransfer) -> None:
        self.transfers[transfer.transfer_id] = transfer
        if self._accepted:
            self.carry_out(transfer, transfer.offer())

    def close_soon(self, reason: str) -> None:
        """Begin to close; safe to repeat."""
        if not self.closing:
            self.closing, self._reason = True, reason
            self.owner.drop_pair(self)
            self._task.cancel()

    async def close(self, reason: str) -> None:
        self.close_soon(reason)
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def carry_out(self, transfer: SourceTransfer, effects: list[Effect]) -> None:
        """Do what the state machine said."""
        tid = transfer.transfer_id
        for effect in effects:
            match effect:
                case Send():
                    self._sends.put_nowait((transfer, effect))
                case StopSequence():
                    self.owner.notices.put_nowait(Stopped(transfer.key))
                case FreeBlocks(committed):
                    self.transfers.pop(tid, None)
                    self.owner.forget(transfer.key)
                    self.owner.notices.put_nowait(Freed(transfer.key, committed))
                case _:
                    self._tell(message_to_target(transfer.key, tid, effect))

    def _tell(self, message: pb.SourceMessage) -> None:
        if not self.closing:
            self._outbox.put_nowait(message)

    async def _outgoing(self) -> AsyncIterator[pb.SourceMessage]:
        while (message := await self._outbox.get()) is not None:
            yield message

    async def _run(self) -> None:
        """The pair's life: hello, channel, messages; at its end nothing touches memory and every transfer is told."""
        loop = asyncio.get_running_loop()

        def send(key: str, value: bytes) -> None:
            message = pb.SourceMessage(rendezvous=pb.RendezvousSet(key=key, value=value))
            loop.call_soon_threadsafe(self._tell, message)

        rendezvous = StreamRendezvous(send)
        error: ServingError = PeerLost(f"pair with {self.peer.worker_id} closed")
        stream: HandoffStream | None = None
        try:
            stream = self.owner.connect(self.peer.address, self._outgoing())
            messages = aiter(stream)
            accept = await self._greet(messages)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(messages, rendezvous))
                group.create_task(self._open(accept, rendezvous, group))
                for transfer in list(self.transfers.values()):
                    self.carry_out(transfer, transfer.offer())
        except asyncio.CancelledError:
            error = PeerLost(f"pair with {self.peer.worker_id} closed: {self._reason}")
        except Exception as caught:
            error = first_error(caught, f"pair with {self.peer.worker_id}")
            log.warning("%s", error.message)
        finally:
            await self._tear_down(rendezvous, error)
            if stream is not None:
                stream.cancel()

    async def _greet(self, messages: AsyncIterator[pb.TargetMessage]) -> pb.PairAccept:
        hello = hello_to(self.peer.boot_id, self.owner.identity, self._offered())
        self._outbox.put_nowait(pb.SourceMessage(hello=hello))
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            first = await anext(messages)
        if first.WhichOneof("message") != "accept":
            raise PeerLost(f"{self.peer.worker_id} did not accept the pair")
        self._accepted = True
        return first.accept

    def _offered(self) -> list[str]:
        """All but those that could not be opened with this peer, as long as any is left."""
        names, refused = list(self.owner.transports), self.owner.unusable.of(self.peer.boot_id)
        return [name for name in names if name not in refused] or names[-1:]

    async def _open(self, accept: pb.PairAccept, rendezvous: StreamRendezvous, group: asyncio.TaskGroup) -> None:
        transport = self.owner.transports.get(accept.transport)
        if transport is None or accept.target_boot_id != self.peer.boot_id:
            raise PeerLost(f"{self.peer.worker_id} answered as another worker or with transport {accept.transport!r}")
        me = self.owner.identity
        pair = PairInfo(me.boot_id, self.peer.boot_id, accept.epoch, accept.nonce, me.block_bytes)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                self._channel = await transport.open_source(pair, rendezvous, self.owner.memory)
        except (IncompatiblePeer, CannotOpen, RuntimeError):
            self.owner.unusable.add(self.peer.boot_id, accept.transport)
            raise
        group.create_task(self._watch(self._channel))
        group.create_task(self._send_credited(self._channel, group))

    async def _watch(self, channel: SourceChannel) -> None:
        await channel.wait_lost()
        raise PeerLost(f"{self.peer.worker_id} is gone")

    async def _send_credited(self, channel: SourceChannel, group: asyncio.TaskGroup) -> None:
        """Begins the sends in the order of their credits; none waits for the one before to be answered."""
        while True:
            transfer, send = await self._sends.get()
            group.create_task(self._send(channel, transfer, send))

    async def _send(self, channel: SourceChannel, transfer: SourceTransfer, send: Send) -> None:
        moves = [
            BlockMove(index, tag, block, generation, -1)
            for index, tag, block, generation in zip(
                send.indices, send.tags, send.block_ids, send.generations, strict=True
            )
        ]
        await channel.send(transfer.transfer_id, moves)
        self.carry_out(transfer, transfer.on_sent(len(moves)))

    async def _read(self, messages: AsyncIterator[pb.TargetMessage], rendezvous: StreamRendezvous) -> None:
        async for message in messages:
            kind = message.WhichOneof("message")
            if kind == "rendezvous":
                rendezvous.deliver(message.rendezvous.key, message.rendezvous.value)
            elif kind is not None:
                self._handle(kind, message)
        raise PeerLost(f"{self.peer.worker_id} closed the pair")

    def _handle(self, kind: str, message: pb.TargetMessage) -> None:
        part = getattr(message, kind)
        transfer = self.transfers.get(getattr(part, "transfer_id", 0))
        if transfer is None:
            self.owner.stale_messages += 1
            return
        match kind:
            case "reserved":
                effects = transfer.on_reserved(part.skip_blocks)
            case "credit":
                effects = transfer.on_credit(part.indices, part.tags)
            case "commit":
                effects = transfer.on_commit()
            case "abort":
                effects = transfer.on_peer_abort()
                if part.unreported:
                    self.owner.notices.put_nowait(Failed(transfer.key, PeerLost(f"handoff refused: {part.reason}")))
            case "abort_ack":
                effects = transfer.on_abort_ack()
            case _:
                raise InvariantViolation(f"unexpected {kind} from {self.peer.worker_id}")
        self.carry_out(transfer, effects)

    async def _tear_down(self, rendezvous: StreamRendezvous, error: ServingError) -> None:
        self.closing = True
        self.owner.drop_pair(self)
        rendezvous.close()
        if self._channel is not None:
            await self._channel.close()
        self._outbox.put_nowait(None)
        for transfer in list(self.transfers.values()):
            effects = transfer.on_pair_closed()
            if any(isinstance(effect, StopSequence) for effect in effects):
                self.owner.notices.put_nowait(Failed(transfer.key, error))
            self.carry_out(transfer, effects)
