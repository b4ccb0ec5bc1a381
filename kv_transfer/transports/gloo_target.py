"""The decode worker's end of a gloo pair: receives credited blocks in place and verifies each frame of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from kv_transfer.frame import FLAG_DIGEST, FrameKind, expect
from kv_transfer.transports.checks import check_tags
from kv_transfer.transports.framing import Frame, Message, cut_messages, payload_digest
from kv_transfer.transports.gloo_link import GlooLink, frame_tensor, read_frame
from kv_transfer.transports.gloo_pipeline import Flight, Pipeline
from kv_transfer.transports.interface import BlockMove, ChannelStats, PairInfo, Receipt
from pdserve.errors import TransferCorrupt
from pdserve.kv_memory import KvMemory


class GlooTarget:
    """A TargetChannel; one thread posts receives and verifies what came, one watches for the peer's end.

    Not the event loop, because gloo's network thread holds the pair's lock for as long as bytes keep coming. Data flows
    only into posted receives, so a credit may overtake its post, and what is posted bounds what arrives.
    """

    pushed = True

    def __init__(self, pair: PairInfo, link: GlooLink, memory: KvMemory, digests: bool) -> None:
        self._memory = memory
        self._link = link
        self._digests = digests
        self._pool = torch.frombuffer(memory.data, dtype=torch.uint8)
        self._next_tag = 0
        self._corrupt_blocks = 0
        self._pipeline = Pipeline("gloo-receive", pair, link, self._begin, self._finish)

    @property
    def stats(self) -> ChannelStats:
        return replace(self._pipeline.moved, corrupt_blocks=self._corrupt_blocks)

    def post(self, transfer_id: int, moves: Sequence[BlockMove]) -> Receipt:
        self._pipeline.check_open()
        next_tag = check_tags(moves, self._next_tag, self._memory.num_blocks)
        receipt = self._pipeline.submit(transfer_id, tuple(moves))
        self._next_tag = next_tag
        return receipt

    async def wait_lost(self) -> None:
        await self._pipeline.wait_lost()

    async def close(self) -> None:
        await self._pipeline.close()

    def _begin(self, flight: Flight) -> None:
        """Post the receives of a frame, in the order in which its messages come."""
        frame = flight.frame
        for tag, start, length in self._messages(frame):
            flight.works.append(self._link.receive(self._pool[start : start + length], tag + 1))
        flight.hearing = self._link.receive(flight.heard, frame.tag)

    def _messages(self, frame: Frame) -> list[Message]:
        return cut_messages(frame.tags, frame.targets, self._memory.block_bytes)

    def _finish(self, flight: Flight) -> None:
        assert flight.hearing is not None
        self._link.finish(flight.hearing)
        try:
            self._verify(flight)
        except TransferCorrupt:
            self._corrupt_blocks += 1
            raise
        answer = frame_tensor(replace(flight.expected, kind=FrameKind.ACK).pack())
        self._link.finish(self._link.send(answer, flight.frame.tag))  # its receive was posted before it was asked

    def _verify(self, flight: Flight) -> None:
        actual = read_frame(flight.heard)
        expect(actual, flight.expected)
        for work in flight.works:
            self._link.finish(work)  # arrived before the descriptor
        if self._digests and not (actual.flags & FLAG_DIGEST and self._digest(flight.frame) == actual.digest):
            raise TransferCorrupt(
                f"blocks {actual.index:,}+{actual.count:,} of transfer {actual.transfer_id:,} have another digest"
            )

    def _digest(self, frame: Frame) -> int:
        return payload_digest(self._memory.data, self._messages(frame))
