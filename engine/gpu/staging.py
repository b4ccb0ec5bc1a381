"""Copies between host and device that nobody waits for: a step's integers in, its tokens out."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.gpu.queue import DeviceQueue, Mark
from engine.gpu.splits import Int64s

RING = 3  # host buffers of each kind: the step in flight, the one being made, and one to spare
ALIGNMENT = 16  # numbers: a kernel is compiled anew for every pattern of pointers that are not multiples of 16 bytes


class Stager:
    """Sends arrays to the device, several in one copy; what it returns is valid until the next call, on the device."""

    def __init__(self, queue: DeviceQueue, capacity: int) -> None:
        self._queue = queue
        self._next = 0
        self._make(capacity)

    def place(self, sizes: Seq[int]) -> list[Tensor]:
        """Where arrays of these sizes will lie if they come first and in this order: what a graph may be made with."""
        starts, total = _layout(sizes)
        assert total <= len(self._device)
        return [self._device[at : at + size] for at, size in zip(starts, sizes, strict=True)]

    def stage(self, parts: Seq[Int64s], *, may_move: bool = True) -> list[Tensor]:
        """One copy to the device; the views of it. `may_move`: where they lie is nobody's business."""
        sizes = [len(part) for part in parts]
        starts, total = _layout(sizes)
        if total > len(self._device):
            assert may_move, "graphs were made with less room"
            self._make(2 * total)
        buffer, mark = self._ring[self._next]
        self._next = (self._next + 1) % RING
        mark.wait()  # RING copies ago: it is past, or the device is far behind
        host = buffer.numpy()
        for at, size, part in zip(starts, sizes, parts, strict=True):
            host[at : at + size] = part
        self._device[:total].copy_(buffer[:total], non_blocking=True)
        mark.set()
        return [self._device[at : at + size] for at, size in zip(starts, sizes, strict=True)]

    def _make(self, capacity: int) -> None:
        self._device = torch.zeros(capacity, dtype=torch.int64, device=self._queue.device)
        self._ring = [(self._queue.host_buffer(capacity), self._queue.mark()) for _ in range(RING)]


def _layout(sizes: Seq[int]) -> tuple[list[int], int]:
    """Where each array starts, and the end of the last."""
    starts, at = [], 0
    for size in sizes:
        starts.append(at)
        at += -(-size // ALIGNMENT) * ALIGNMENT
    return starts, starts[-1] + sizes[-1] if starts else 0


def staged_size(sizes: Seq[int]) -> int:
    """Capacity that arrays of these sizes need."""
    return _layout(sizes)[1]


@dataclass(frozen=True, slots=True)
class Arriving:
    """An array on its way to the host."""

    data: Tensor
    mark: Mark

    def wait(self) -> Int64s:
        """The array, once it is here; valid until RING - 1 more were fetched."""
        self.mark.wait()
        array: Int64s = self.data.numpy()
        return array


class Fetcher:
    """Brings arrays to the host."""

    def __init__(self, queue: DeviceQueue, capacity: int) -> None:
        self._queue = queue
        self._next = 0
        self._make(capacity)

    def fetch(self, array: Tensor) -> Arriving:
        """Start one copy. Shapes: int64, any shape, contiguous."""
        if array.numel() > self._capacity:
            self._make(2 * array.numel())  # what is on its way keeps its own buffer
        buffer, mark = self._ring[self._next]
        self._next = (self._next + 1) % RING
        host = buffer[: array.numel()].view(array.shape)
        host.copy_(array, non_blocking=True)
        mark.set()
        return Arriving(host, mark)

    def _make(self, capacity: int) -> None:
        self._capacity = capacity
        self._ring = [(self._queue.host_buffer(capacity), self._queue.mark()) for _ in range(RING)]
