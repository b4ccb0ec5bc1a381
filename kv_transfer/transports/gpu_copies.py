"""Copies of KV blocks on one device: the seam under every transport whose pool is not host memory.

    CudaCopyQueue   a side stream of one GPU                     NOT YET RUN ON A GPU
    HostCopyQueue   the same contract on the CPU, where everything has happened when a call returns

Work given to a queue runs in order, and beside what the engine computes. Who needs a copy to be over waits for a Mark
set behind it: events inside one process only. Between processes the order is told by messages: a block is announced
after the step that wrote it has ended, and is given to a new owner after its last reader has answered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kv_transfer.transports.framing import Ids, runs
from pdserve.kv_memory import KvMemory

MAX_RUNS = 4
"""Copied one by one at most: a call costs about as much as moving 8 MiB; more of them are gathered."""


class Mark(Protocol):
    """A place in a queue, after all that was given until it was made."""

    def wait(self) -> None:
        """Return when the queue has come past it. Does not spin, and has no deadline of its own."""
        ...


class CopyQueue(Protocol):
    """Owned by one thread, but for `wait` of its marks."""

    @property
    def device(self) -> torch.device: ...

    def give(self, work: Callable[[], None]) -> None:
        """Call `work` now; what it starts on the device goes into this queue."""
        ...

    def mark(self) -> Mark:
        """A mark at the end of what was given so far."""
        ...


PoolOf = Callable[[KvMemory], Tensor]
"""The tensor of blocks that belongs to a pool's host memory, which then holds nothing but the generations."""
MakeQueue = Callable[[torch.device], CopyQueue]


class CudaCopyQueue:
    """A stream of our own. NOT YET RUN ON A GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def give(self, work: Callable[[], None]) -> None:
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            work()

    def mark(self) -> Mark:
        return _CudaMark(self._stream)


class _CudaMark:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # whoever waits sleeps
        self._event.record(stream)

    def wait(self) -> None:
        self._event.synchronize()


class HostCopyQueue:
    """The CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def give(self, work: Callable[[], None]) -> None:
        work()

    def mark(self) -> Mark:
        return _Passed()


class _Passed:
    def wait(self) -> None:
        """Nothing to wait for."""


def queue_for(device: torch.device) -> CopyQueue:
    """The queue of a device."""
    return CudaCopyQueue(device) if device.type == "cuda" else HostCopyQueue(device)


def host_pool(memory: KvMemory) -> Tensor:
    """[N, block_bytes] of a pool whose blocks lie in host memory after all: the PoolOf of workers without a GPU."""
    return torch.frombuffer(memory.data, dtype=torch.uint8).view(memory.num_blocks, memory.block_bytes)


def pin(memory: KvMemory, device: torch.device) -> Callable[[], None]:
    """Let GPUs copy to and from this memory by themselves; what is returned ends that. NOT YET RUN ON A GPU.

    `device`: one that this process uses; CUDA would begin on the first GPU otherwise, and take memory there.
    """
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = host_pool(memory).data_ptr()
    with torch.cuda.device(device):
        if int(runtime.cudaHostRegister(address, len(memory.data), 1)) != 0:
            raise RuntimeError(f"cannot pin {len(memory.data):,} bytes of host memory")

    def unpin() -> None:
        with torch.cuda.device(device):
            runtime.cudaHostUnregister(address)

    return unpin


def as_words(blocks: Tensor, block_bytes: int) -> Tensor:
    """A pool as rows of the widest integers that fill a block: [N, block_bytes / 8] int64, or [N, block_bytes] uint8.

    Gathers move a word per thread, whatever the words mean. Raises ValueError when the blocks have another size.
    """
    rows = blocks.flatten(1)
    if not rows.is_contiguous() or rows.shape[1] * rows.element_size() != block_bytes:
        raise ValueError(f"blocks of {rows.shape[1] * rows.element_size():,} bytes, expected {block_bytes:,}")
    return rows.view(torch.uint8 if block_bytes % 8 else torch.int64)


def device_ids(ids: Ids, device: torch.device) -> Tensor:
    """[n] int64 on the device, without a wait: from pinned memory, which the allocator keeps until it was read."""
    host = torch.from_numpy(ids)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def copy_blocks(source: Tensor, sources: Ids, target: Tensor, targets: Ids) -> None:
    """Start to copy blocks of one pool into another; called inside CopyQueue.give.

    Shapes:  source, target [N, words], of as_words; sources, targets [n], no target twice.
    Cost:    n * block_bytes read and written once, in runs; twice, by way of a buffer, where there are many runs on one
             device. Between two devices always in runs: a gather cannot read another device.
    """
    cut = list(runs(sources, targets))
    if len(cut) <= MAX_RUNS or source.device != target.device:
        for first, end in cut:
            start, to, count = int(sources[first]), int(targets[first]), end - first
            target[to : to + count].copy_(source[start : start + count], non_blocking=True)
        return
    gathered = source.index_select(0, device_ids(sources, source.device))
    target.index_copy_(0, device_ids(targets, target.device), gathered)


def pack(pool: Tensor, block_ids: Ids, buffer: Tensor) -> None:
    """Start to copy blocks into a contiguous buffer, [n, words]; called inside CopyQueue.give."""
    copy_blocks(pool, block_ids, buffer, np.arange(len(block_ids)))


def unpack(buffer: Tensor, pool: Tensor, block_ids: Ids) -> None:
    """Start to copy a contiguous buffer, [n, words], into blocks; called inside CopyQueue.give."""
    copy_blocks(buffer, np.arange(len(block_ids)), pool, block_ids)


def block_sums(packed: Tensor) -> npt.NDArray[np.int64]:
    """Each block's words added up modulo 2**64, [n]: a digest that a device computes at the speed of reading.

    Exact in any order of addition. A flipped bit, a stale or a misplaced block shows; words that changed places inside
    a block do not: it guards against our mistakes, not against an adversary. Waits for the device; inside
    CopyQueue.give.
    """
    return packed.sum(1, dtype=torch.int64).cpu().numpy()
