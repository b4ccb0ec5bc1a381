"""The two ends of an NCCL pair. Frames are those of gloo_pipeline; a frame's payload is one message.

    source, per frame                                  target
      pack blocks into a buffer; wait for the device
      look at their generations
      descriptor ── gloo ──>                           is it the expected frame?
      buffer ── NCCL ──>                               into a buffer; wait for the device
                                                       digest, if asked for
                                                       unpack into the blocks; wait for the device
      ...                                    <── gloo ── answer

Packing costs each side one more read and write of its own memory, a tenth of what a link costs. For it, NCCL never
touches a pool: what an aborted kernel still reads or writes is a buffer, blocks are free the moment our own copies are
over, and the generations were checked before the bytes left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import xxhash
from torch import Tensor

from kv_transfer.frame import FLAG_DIGEST, FrameKind, expect
from kv_transfer.transports.checks import StaleBlock, check_credited, check_generations, check_tags
from kv_transfer.transports.faults import NO_FAULTS, Faults
from kv_transfer.transports.framing import FRAME_BYTES, MAX_FRAME_BLOCKS, Frame
from kv_transfer.transports.gloo_link import frame_tensor, read_frame
from kv_transfer.transports.gloo_pipeline import Flight, Pipeline
from kv_transfer.transports.gpu_copies import CopyQueue, Mark, block_sums, pack, unpack
from kv_transfer.transports.interface import BlockMove, ChannelStats, PairInfo, Receipt
from kv_transfer.transports.nccl_link import NcclLink
from pdserve.errors import TransferCorrupt
from pdserve.kv_memory import KvMemory

BUFFERS = 3
"""Of the source: one being sent, one to follow at once, one being packed."""


class NcclSource:
    """A SourceChannel; one thread packs, sends and waits for answers, others watch and wait for NCCL."""

    def __init__(
        self, pair: PairInfo, link: NcclLink, memory: KvMemory, blocks: Tensor, queue: CopyQueue, faults: Faults,
        digests: bool,
    ) -> None:  # fmt: skip
        """`blocks`: the pool as of gpu_copies.as_words."""
        self._link = link
        self._blocks = blocks
        self._generations = np.frombuffer(memory.generations, np.uint64)
        self._queue = queue
        self._faults = faults
        self._digests = digests
        self._buffers = [_buffer(blocks, pair.block_bytes) for _ in range(BUFFERS)]
        self._sent: list[Mark | None] = [None] * BUFFERS
        self._frames = 0
        self._stale_blocks = 0
        self._pipeline = Pipeline("nccl-send", pair, link, self._begin, self._finish)

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
        check_credited(frame.sources, frame.tags, len(self._blocks))
        flight.hearing = self._link.receive(flight.heard, frame.tag)  # before it is asked for
        slot, self._frames = self._frames % BUFFERS, self._frames + 1
        if (sent := self._sent[slot]) is not None:
            self._link.finish_payload(sent)
        packed = self._buffers[slot][: len(frame)]
        self._pack(frame, packed)
        descriptor = flight.expected
        if self._digests:
            descriptor = replace(descriptor, digest=_digest(packed, self._queue), flags=FLAG_DIGEST)
        if self._faults is not NO_FAULTS:
            _damage(packed, self._faults, self._queue)
        flight.expected = replace(flight.expected, kind=FrameKind.ACK)
        flight.told = frame_tensor(self._faults.alter(descriptor).pack())
        flight.works.append(self._link.send(flight.told, frame.tag))
        self._sent[slot] = self._link.send_payload(packed)

    def _pack(self, frame: Frame, packed: Tensor) -> None:
        """Generations are looked at when the copy is over: what is sent later is of the blocks that were named."""
        self._queue.give(lambda: pack(self._blocks, frame.sources, packed))
        self._queue.mark().wait()
        try:
            check_generations(frame, self._generations)
        except StaleBlock:
            self._stale_blocks += 1
            raise

    def _finish(self, flight: Flight) -> None:
        assert flight.hearing is not None
        self._link.finish(flight.hearing)
        expect(read_frame(flight.heard), flight.expected)


class NcclTarget:
    """A TargetChannel; one thread receives, verifies and unpacks."""

    pushed = True

    def __init__(
        self, pair: PairInfo, link: NcclLink, blocks: Tensor, queue: CopyQueue, digests: bool
    ) -> None:  # fmt: skip
        """`blocks`: the pool as of gpu_copies.as_words."""
        self._link = link
        self._blocks = blocks
        self._queue = queue
        self._digests = digests
        self._buffer = _buffer(blocks, pair.block_bytes)
        self._next_tag = 0
        self._corrupt_blocks = 0
        self._pipeline = Pipeline("nccl-receive", pair, link, self._begin, self._finish)

    @property
    def stats(self) -> ChannelStats:
        return replace(self._pipeline.moved, corrupt_blocks=self._corrupt_blocks)

    def post(self, transfer_id: int, moves: Sequence[BlockMove]) -> Receipt:
        self._pipeline.check_open()
        next_tag = check_tags(moves, self._next_tag, len(self._blocks))
        receipt = self._pipeline.submit(transfer_id, tuple(moves))
        self._next_tag = next_tag
        return receipt

    async def wait_lost(self) -> None:
        await self._pipeline.wait_lost()

    async def close(self) -> None:
        await self._pipeline.close()

    def _begin(self, flight: Flight) -> None:
        flight.hearing = self._link.receive(flight.heard, flight.frame.tag)

    def _finish(self, flight: Flight) -> None:
        assert flight.hearing is not None
        self._link.finish(flight.hearing)
        try:
            self._receive(flight)
        except TransferCorrupt:
            self._corrupt_blocks += 1
            raise
        answer = frame_tensor(replace(flight.expected, kind=FrameKind.ACK).pack())
        self._link.finish(self._link.send(answer, flight.frame.tag))  # its receive was posted before it was asked

    def _receive(self, flight: Flight) -> None:
        """The receive is given only now, when the source has said that it sends: it holds no processor of the GPU."""
        frame, told = flight.frame, read_frame(flight.heard)
        expect(told, flight.expected)
        packed = self._buffer[: len(frame)]
        self._link.finish_payload(self._link.receive_payload(packed))
        if self._digests and not (told.flags & FLAG_DIGEST and _digest(packed, self._queue) == told.digest):
            raise TransferCorrupt(
                f"blocks {told.index:,}+{told.count:,} of transfer {told.transfer_id:,} have another digest"
            )
        self._queue.give(lambda: unpack(packed, self._blocks, frame.targets))
        self._queue.mark().wait()


def _buffer(blocks: Tensor, block_bytes: int) -> Tensor:
    """[blocks of the largest frame, words] beside the pool."""
    count = min(MAX_FRAME_BLOCKS, max(1, FRAME_BYTES // block_bytes))
    return torch.empty(count, blocks.shape[1], dtype=blocks.dtype, device=blocks.device)


def _digest(packed: Tensor, queue: CopyQueue) -> int:
    sums: list[np.ndarray[tuple[int, ...], np.dtype[np.int64]]] = []
    queue.give(lambda: sums.append(block_sums(packed)))
    return int(xxhash.xxh3_64_intdigest(sums[0].data))


def _damage(packed: Tensor, faults: Faults, queue: CopyQueue) -> None:
    """Let the fault injector at the bytes, by way of the host."""

    def act() -> None:
        host = packed.cpu()
        faults.after_digest(host.numpy().view(np.uint8).reshape(-1).data)
        packed.copy_(host)

    queue.give(act)
    queue.mark().wait()
