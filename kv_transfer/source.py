"""The prefill worker's end of every handoff: offers, announces blocks, sends what was credited, frees after the commit.

One pair per decode worker: one control stream, one transport channel, one epoch; made on demand, thrown away on any
error or timeout, and with it everything that was under way on it. All on one event loop; nothing here blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Protocol

from kv_transfer.agreement import UnusableTransports
from kv_transfer.notices import Failed, Freed, Identity, Notice, PeerAddress, Stopped, first_error
from kv_transfer.rendezvous import StreamRendezvous
from kv_transfer.transports.interface import BlockMove, CannotOpen, PairInfo, SourceChannel, Transport
from pdserve.errors import IncompatiblePeer, InvariantViolation, PeerLost, ServingError
from pdserve.ids import PROTOCOL_VERSION, SequenceKey
from pdserve.kv_memory import KvMemory
from pdserve.v1 import worker_pb2 as pb
from scheduling.handoff import (
    Effect,
    FreeBlocks,
    Send,
    SourceTransfer,
    StopSequence,
    TellAbort,
    TellComplete,
    TellOffer,
    TellReady,
)  # fmt: skip

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
MAX_PAIRS = 64


class HandoffStream(Protocol):
    """An open Handoff call."""

    def __aiter__(self) -> AsyncIterator[pb.TargetMessage]: ...

    def cancel(self) -> bool: ...


Connect = Callable[[str, AsyncIterator[pb.SourceMessage]], HandoffStream]
"""Opens the Handoff stream to an address with the cluster's secret; the worker gives it."""


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


class SourcePair:
    """One decode worker, from here."""

    def __init__(self, source: HandoffSource, peer: PeerAddress) -> None:
        self.source = source
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
            self.source.drop_pair(self)
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
                case TellOffer(num_blocks):
                    key = pb.SequenceKey(request_id=transfer.key.request_id, attempt=transfer.key.attempt)
                    self._tell(pb.SourceMessage(offer=pb.Offer(key=key, transfer_id=tid, num_blocks=num_blocks)))
                case TellReady(first, block_ids, generations):
                    ready = pb.BlocksReady(transfer_id=tid, first=first, block_ids=block_ids, generations=generations)
                    self._tell(pb.SourceMessage(ready=ready))
                case TellComplete(token_id):
                    complete = pb.PromptComplete(transfer_id=tid, first_token_id=token_id)
                    self._tell(pb.SourceMessage(complete=complete))
                case TellAbort(reason):
                    self._tell(pb.SourceMessage(abort=pb.TransferAbort(transfer_id=tid, reason=reason)))
                case Send():
                    self._sends.put_nowait((transfer, effect))
                case StopSequence():
                    self.source.notices.put_nowait(Stopped(transfer.key))
                case FreeBlocks(committed):
                    self.transfers.pop(tid, None)
                    self.source.forget(transfer.key)
                    self.source.notices.put_nowait(Freed(transfer.key, committed))

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
            stream = self.source.connect(self.peer.address, self._outgoing())
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
        me = self.source.identity
        major, minor = me.nccl or (0, 0)
        hello = pb.PairHello(
            source_boot_id=me.boot_id, target_boot_id=self.peer.boot_id, source_worker_id=me.worker_id,
            protocol_version=PROTOCOL_VERSION, layout_fingerprint=me.fingerprint, block_bytes=me.block_bytes,
            transports=self._offered(), host_id=me.host_id, gpu_uuid=me.gpu_uuid, nccl_major=major, nccl_minor=minor,
        )  # fmt: skip
        self._outbox.put_nowait(pb.SourceMessage(hello=hello))
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            first = await anext(messages)
        if first.WhichOneof("message") != "accept":
            raise PeerLost(f"{self.peer.worker_id} did not accept the pair")
        self._accepted = True
        return first.accept

    def _offered(self) -> list[str]:
        """All but those that could not be opened with this peer, as long as any is left."""
        names, refused = list(self.source.transports), self.source.unusable.of(self.peer.boot_id)
        return [name for name in names if name not in refused] or names[-1:]

    async def _open(self, accept: pb.PairAccept, rendezvous: StreamRendezvous, group: asyncio.TaskGroup) -> None:
        transport = self.source.transports.get(accept.transport)
        if transport is None or accept.target_boot_id != self.peer.boot_id:
            raise PeerLost(f"{self.peer.worker_id} answered as another worker or with transport {accept.transport!r}")
        me = self.source.identity
        pair = PairInfo(me.boot_id, self.peer.boot_id, accept.epoch, accept.nonce, me.block_bytes)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                self._channel = await transport.open_source(pair, rendezvous, self.source.memory)
        except (IncompatiblePeer, CannotOpen, RuntimeError):
            self.source.unusable.add(self.peer.boot_id, accept.transport)
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
            self.source.stale_messages += 1
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
                    self.source.notices.put_nowait(Failed(transfer.key, PeerLost(f"handoff refused: {part.reason}")))
            case "abort_ack":
                effects = transfer.on_abort_ack()
            case _:
                raise InvariantViolation(f"unexpected {kind} from {self.peer.worker_id}")
        self.carry_out(transfer, effects)

    async def _tear_down(self, rendezvous: StreamRendezvous, error: ServingError) -> None:
        self.closing = True
        self.source.drop_pair(self)
        rendezvous.close()
        if self._channel is not None:
            await self._channel.close()
        self._outbox.put_nowait(None)
        for transfer in list(self.transfers.values()):
            effects = transfer.on_pair_closed()
            if any(isinstance(effect, StopSequence) for effect in effects):
                self.source.notices.put_nowait(Failed(transfer.key, error))
            self.carry_out(transfer, effects)
