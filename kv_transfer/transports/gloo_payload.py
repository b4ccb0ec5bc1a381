"""Payload over gloo, straight from pool to pool in host memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from kv_transfer.frame import FLAG_DIGEST, Descriptor
from kv_transfer.transports.checks import check_generations
from kv_transfer.transports.faults import Faults
from kv_transfer.transports.framing import Frame, Message, cut_messages, payload_digest
from kv_transfer.transports.gloo_link import GlooLink
from kv_transfer.transports.gloo_pipeline import Flight
from kv_transfer.transports.pushing import another_digest
from pdserve.kv_memory import KvMemory


class GlooOutgoing:
    """pushing.Outgoing: hashed while the frame before is on the wire, then sent."""

    def __init__(self, link: GlooLink, memory: KvMemory, faults: Faults, digests: bool) -> None:
        self.num_blocks = memory.num_blocks
        self._memory = memory
        self._link = link
        self._faults = faults
        self._digests = digests
        self._pool = torch.frombuffer(memory.data, dtype=torch.uint8)
        self._generations = np.frombuffer(memory.generations, np.uint64)

    def prepare(self, flight: Flight) -> Descriptor:
        """All sends in a row: each may have to wait for the network thread to let go of the pair. Generations are
        looked at after they were read: a block that was given away meanwhile never gets its descriptor."""
        frame = flight.frame
        messages = cut_messages(frame.tags, frame.sources, self._memory.block_bytes)
        descriptor = self._described(flight.expected, messages)
        for tag, start, length in messages:
            self._faults.after_digest(self._memory.data[start : start + length])
            flight.works.append(self._link.send(self._pool[start : start + length], tag + 1))
        check_generations(frame, self._generations)
        return descriptor

    def follow(self, flight: Flight) -> None:
        """Nothing: who has the descriptor has the payload."""

    def _described(self, descriptor: Descriptor, messages: list[Message]) -> Descriptor:
        if not self._digests:
            return descriptor
        digest = payload_digest(self._memory.data, messages)
        return replace(descriptor, digest=digest, flags=FLAG_DIGEST)


class GlooIncoming:
    """pushing.Incoming: received in place."""

    def __init__(self, link: GlooLink, memory: KvMemory, digests: bool) -> None:
        self.num_blocks = memory.num_blocks
        self._memory = memory
        self._link = link
        self._digests = digests
        self._pool = torch.frombuffer(memory.data, dtype=torch.uint8)

    def expect(self, flight: Flight) -> None:
        """Post the receives of a frame, in the order in which its messages come."""
        for tag, start, length in self._messages(flight.frame):
            flight.works.append(self._link.receive(self._pool[start : start + length], tag + 1))

    def take(self, flight: Flight, told: Descriptor) -> None:
        for work in flight.works:
            self._link.finish(work)  # arrived before the descriptor
        if self._digests and not (told.flags & FLAG_DIGEST and self._digest(flight.frame) == told.digest):
            raise another_digest(told)

    def _messages(self, frame: Frame) -> list[Message]:
        return cut_messages(frame.tags, frame.targets, self._memory.block_bytes)

    def _digest(self, frame: Frame) -> int:
        return payload_digest(self._memory.data, self._messages(frame))
