"""Payload over NCCL: packed into buffers of the pair, one message a frame; the rest is pushing.py's.

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

from dataclasses import replace

import numpy as np
import torch
import xxhash
from torch import Tensor

from kv_transfer.frame import FLAG_DIGEST, Descriptor
from kv_transfer.transports.checks import check_generations
from kv_transfer.transports.faults import NO_FAULTS, Faults
from kv_transfer.transports.framing import FRAME_BYTES, MAX_FRAME_BLOCKS, Frame
from kv_transfer.transports.gloo_pipeline import Flight
from kv_transfer.transports.gpu_copies import CopyQueue, Mark, block_sums, pack, unpack
from kv_transfer.transports.nccl_link import NcclLink
from kv_transfer.transports.pushing import another_digest
from pdserve.kv_memory import KvMemory

BUFFERS = 3
"""Of the source: one being sent, one to follow at once, one being packed."""


class NcclOutgoing:
    """pushing.Outgoing."""

    def __init__(
        self, link: NcclLink, memory: KvMemory, blocks: Tensor, queue: CopyQueue, faults: Faults, digests: bool
    ) -> None:
        """`blocks`: the pool as of gpu_copies.as_words."""
        self.num_blocks = len(blocks)
        self._link = link
        self._blocks = blocks
        self._generations = np.frombuffer(memory.generations, np.uint64)
        self._queue = queue
        self._faults = faults
        self._digests = digests
        self._buffers = [_buffer(blocks, memory.block_bytes) for _ in range(BUFFERS)]
        self._sent: list[Mark | None] = [None] * BUFFERS
        self._frames = 0

    def prepare(self, flight: Flight) -> Descriptor:
        if (sent := self._sent[self._slot]) is not None:
            self._link.finish_payload(sent)
        packed = self._packed(flight)
        self._pack(flight.frame, packed)
        descriptor = flight.expected
        if self._digests:
            descriptor = replace(descriptor, digest=_digest(packed, self._queue), flags=FLAG_DIGEST)
        if self._faults is not NO_FAULTS:
            _damage(packed, self._faults, self._queue)
        return descriptor

    def follow(self, flight: Flight) -> None:
        self._sent[self._slot] = self._link.send_payload(self._packed(flight))
        self._frames += 1

    @property
    def _slot(self) -> int:
        return self._frames % BUFFERS

    def _packed(self, flight: Flight) -> Tensor:
        return self._buffers[self._slot][: len(flight.frame)]

    def _pack(self, frame: Frame, packed: Tensor) -> None:
        """Generations are looked at when the copy is over: what is sent later is of the blocks that were named."""
        self._queue.give(lambda: pack(self._blocks, frame.sources, packed))
        self._queue.mark().wait()
        check_generations(frame, self._generations)


class NcclIncoming:
    """pushing.Incoming."""

    def __init__(self, link: NcclLink, blocks: Tensor, block_bytes: int, queue: CopyQueue, digests: bool) -> None:
        """`blocks`: the pool as of gpu_copies.as_words."""
        self.num_blocks = len(blocks)
        self._link = link
        self._blocks = blocks
        self._queue = queue
        self._digests = digests
        self._buffer = _buffer(blocks, block_bytes)

    def expect(self, flight: Flight) -> None:
        """Nothing: a receive that waits would hold a processor of the GPU."""

    def take(self, flight: Flight, told: Descriptor) -> None:
        """The receive is given only now, when the source has said that it sends."""
        packed = self._buffer[: len(flight.frame)]
        self._link.finish_payload(self._link.receive_payload(packed))
        if self._digests and not (told.flags & FLAG_DIGEST and _digest(packed, self._queue) == told.digest):
            raise another_digest(told)
        self._queue.give(lambda: unpack(packed, self._blocks, flight.frame.targets))
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
