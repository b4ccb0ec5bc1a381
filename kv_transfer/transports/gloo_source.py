"""The prefill worker's end of a gloo pair: hashes and sends credited blocks, then waits until the target has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from kv_transfer.frame import FLAG_DIGEST, Descriptor, FrameKind, expect
from kv_transfer.transports.checks import StaleBlock, check_credited, check_generations
from kv_transfer.transports.faults import Faults
from kv_transfer.transports.framing import Frame, Message, cut_messages, payload_digest
from kv_transfer.transports.gloo_link import MAX_DATA_TAG, GlooLink, frame_tensor, read_frame
from kv_transfer.transports.gloo_pipeline import Flight, Pipeline
from kv_transfer.transports.interface import BlockMove, ChannelStats, PairInfo
from pdserve.errors import InvariantViolation
from pdserve.kv_memory import KvMemory


class GlooSource:
    """A SourceChannel; one thread hashes, sends and waits for answers, one watches for the peer's end."""

    def __init__(self, pair: PairInfo, link: GlooLink, memory: KvMemory, faults: Faults, digests: bool) -> None:
        self._memory = memory
        self._link = link
        self._faults = faults
        self._digests = digests
        self._pool = torch.frombuffer(memory.data, dtype=torch.uint8)
        self._generations = np.frombuffer(memory.generations, np.uint64)
        self._stale_blocks = 0
        self._pipeline = Pipeline("gloo-send", pair, link, self._begin, self._finish)

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
        """Hash the payload while the frame before it is on the wire, then send it, and the descriptor behind it.

        All sends in a row: each may have to wait for the network thread to let go of the pair.
        """
        frame = flight.frame
        self._check_ids(frame)
        flight.hearing = self._link.receive(flight.heard, frame.tag)  # before it is asked for
        messages = cut_messages(frame.tags, frame.sources, self._memory.block_bytes)
        descriptor = self._described(flight.expected, messages)
        for tag, start, length in messages:
            self._faults.after_digest(self._memory.data[start : start + length])
            flight.works.append(self._link.send(self._pool[start : start + length], tag + 1))
        self._check_generations(frame)
        descriptor = self._faults.alter(descriptor)
        flight.expected = replace(flight.expected, kind=FrameKind.ACK)
        flight.told = frame_tensor(descriptor.pack())
        flight.works.append(self._link.send(flight.told, frame.tag))

    def _described(self, descriptor: Descriptor, messages: list[Message]) -> Descriptor:
        if not self._digests:
            return descriptor
        digest = payload_digest(self._memory.data, messages)
        return replace(descriptor, digest=digest, flags=FLAG_DIGEST)

    def _finish(self, flight: Flight) -> None:
        assert flight.hearing is not None
        self._link.finish(flight.hearing)
        expect(read_frame(flight.heard), flight.expected)

    def _check_ids(self, frame: Frame) -> None:
        if (frame.tags % 2).any() or frame.tags.min() < 0 or frame.tags.max() >= MAX_DATA_TAG:
            raise InvariantViolation(f"credited tag is odd or past {MAX_DATA_TAG:,}")
        check_credited(frame.sources, frame.tags, self._memory.num_blocks)

    def _check_generations(self, frame: Frame) -> None:
        """After they were read: a block that was given away meanwhile never gets its descriptor."""
        try:
            check_generations(frame, self._generations)
        except StaleBlock:
            self._stale_blocks += 1
            raise
