"""The two ends of a pushed pair: frames of gloo_pipeline, descriptors and answers over gloo; how payload goes is given.

source, per frame                              target
  prepare: payload, or a copy of it               expect: what must be posted before it is sent
  descriptor           ── gloo ──>                is it the expected frame?
  follow: payload that waits for it               take: verify, bring into the pool
  ...                  <── gloo ──                answer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from kv_transfer.frame import Descriptor, FrameKind, expect
from kv_transfer.transports.checks import StaleBlock, check_credited, check_tags
from kv_transfer.transports.faults import Faults
from kv_transfer.transports.gloo_link import GlooLink, frame_tensor, read_frame
from kv_transfer.transports.gloo_pipeline import Flight, Pipeline
from kv_transfer.transports.interface import BlockMove, ChannelStats, PairInfo, Receipt
from pdserve.errors import TransferCorrupt


class Outgoing(Protocol):
    """Sends the payload of a frame; called on the pipeline's thread. What it raises ends the pair."""

    num_blocks: int  # of the pool

    def prepare(self, flight: Flight) -> Descriptor:
        """Everything up to the descriptor, which is returned: with its digest, and once the generations were looked at
        behind the last read of the pool (StaleBlock)."""
        ...

    def follow(self, flight: Flight) -> None:
        """What goes behind the descriptor."""
        ...


class Incoming(Protocol):
    """Receives the payload of a frame; called on the pipeline's thread. What it raises ends the pair."""

    num_blocks: int  # of the pool

    def expect(self, flight: Flight) -> None:
        """Post what must be posted before the source sends."""
        ...

    def take(self, flight: Flight, told: Descriptor) -> None:
        """The descriptor came and is the expected one: verified and in the pool on return, or TransferCorrupt."""
        ...


class PushingSource:
    """A SourceChannel; one thread sends and waits for answers, others watch for the peer's end."""

    def __init__(self, name: str, pair: PairInfo, link: GlooLink, payload: Outgoing, faults: Faults) -> None:
        self._link = link
        self._payload = payload
        self._faults = faults
        self._stale_blocks = 0
        self._pipeline = Pipeline(f"{name}-send", pair, link, self._begin, self._finish)

    @property
    def stats(self) -> ChannelStats:
        return replace(self._pipeline.moved, stale_blocks=self._stale_blocks)

    async def send(self, transfer_id: int, moves: Sequence[BlockMove]) -> None:
        self._pipeline.check_open()
        if moves:
            await self._pipeline.submit(transfer_id, tuple(moves)).wait()

    async def wait_lost(self) -> None:
        await self._pipeline.wait_lost()

    async def close(self) -> None:
        await self._pipeline.close()

    def _begin(self, flight: Flight) -> None:
        frame = flight.frame
        check_credited(frame.sources, frame.tags, self._payload.num_blocks)
        flight.hearing = self._link.receive(flight.heard, frame.tag)  # before it is asked for
        try:
            descriptor = self._payload.prepare(flight)
        except StaleBlock:
            self._stale_blocks += 1
            raise
        flight.expected = replace(flight.expected, kind=FrameKind.ACK)
        flight.told = frame_tensor(self._faults.alter(descriptor).pack())
        flight.works.append(self._link.send(flight.told, frame.tag))
        self._payload.follow(flight)

    def _finish(self, flight: Flight) -> None:
        assert flight.hearing is not None
        self._link.finish(flight.hearing)
        expect(read_frame(flight.heard), flight.expected)


class PushedTarget:
    """A TargetChannel; one thread receives, verifies and answers, others watch for the peer's end.

    Not the event loop, because gloo's network thread holds the pair's lock for as long as bytes keep coming. Data flows
    only into posted receives, so a credit may overtake its post, and what is posted bounds what arrives.
    """

    pushed = True

    def __init__(self, name: str, pair: PairInfo, link: GlooLink, payload: Incoming) -> None:
        self._link = link
        self._payload = payload
        self._next_tag = 0
        self._corrupt_blocks = 0
        self._pipeline = Pipeline(f"{name}-receive", pair, link, self._begin, self._finish)

    @property
    def stats(self) -> ChannelStats:
        return replace(self._pipeline.moved, corrupt_blocks=self._corrupt_blocks)

    def post(self, transfer_id: int, moves: Sequence[BlockMove]) -> Receipt:
        self._pipeline.check_open()
        next_tag = check_tags(moves, self._next_tag, self._payload.num_blocks)
        receipt = self._pipeline.submit(transfer_id, tuple(moves))
        self._next_tag = next_tag
        return receipt

    async def wait_lost(self) -> None:
        await self._pipeline.wait_lost()

    async def close(self) -> None:
        await self._pipeline.close()

    def _begin(self, flight: Flight) -> None:
        self._payload.expect(flight)
        flight.hearing = self._link.receive(flight.heard, flight.frame.tag)

    def _finish(self, flight: Flight) -> None:
        assert flight.hearing is not None
        self._link.finish(flight.hearing)
        try:
            told = read_frame(flight.heard)
            expect(told, flight.expected)
            self._payload.take(flight, told)
        except TransferCorrupt:
            self._corrupt_blocks += 1
            raise
        answer = frame_tensor(replace(flight.expected, kind=FrameKind.ACK).pack())
        self._link.finish(self._link.send(answer, flight.frame.tag))  # its receive was posted before it was asked


def another_digest(told: Descriptor) -> TransferCorrupt:
    """The bytes that came are not those that the source hashed."""
    return TransferCorrupt(f"blocks {told.index:,}+{told.count:,} of transfer {told.transfer_id:,} have another digest")
