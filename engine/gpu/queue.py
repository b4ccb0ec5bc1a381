"""The device's work queue as one engine sees it, and the host memory that copies go through.

    CudaQueue   a stream of our own, pinned memory, events, CUDA graphs            NOT YET RUN ON HARDWARE
    HostQueue   the same contract on the CPU, where everything has happened when a call returns

Work given to a queue runs in order. So a buffer on the device may be filled again at once: the copy waits its turn. A
buffer on the host may be only after its Mark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Mark(Protocol):
    """A place in the queue."""

    def set(self) -> None:
        """It is here, after all that was given so far. May be set again."""
        ...

    def wait(self) -> None:
        """Return when the queue has come past it; at once if it was never set. Does not spin; has no deadline: a device
        that hangs is noticed by the router, which hears nothing more from this worker."""
        ...


class DeviceQueue(Protocol):
    """Owned by one thread at a time."""

    device: torch.device

    def active(self) -> AbstractContextManager[None]:
        """Inside, this thread's work goes into this queue."""
        ...

    def host_buffer(self, count: int) -> Tensor:
        """[count] int64 of host memory that copies may go to and from while the host does other things."""
        ...

    def mark(self) -> Mark:
        """A mark that was never set."""
        ...

    def capture(self, act: Callable[[], T]) -> Callable[[], T]:
        """`act` as something to repeat: same addresses, same shapes, same work, other contents.

        `act` must have run before with this queue. What it returned is valid until the next repetition of anything.
        """
        ...


class CudaQueue:
    """A stream of one GPU; graphs share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            torch.cuda.synchronize()  # weights and pool were made in another stream, which ours does not wait for
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def active(self) -> Iterator[None]:
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            yield

    def host_buffer(self, count: int) -> Tensor:
        return torch.empty(count, dtype=torch.int64, pin_memory=True)

    def mark(self) -> Mark:
        return _CudaMark(self._stream)

    def capture(self, act: Callable[[], T]) -> Callable[[], T]:
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads of a worker may copy KV meanwhile: only what this thread does is recorded and restricted.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = act()

        def replay() -> T:
            graph.replay()
            return result

        return replay


class _CudaMark:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # whoever waits sleeps
        self._is_set = False

    def set(self) -> None:
        self._event.record(self._stream)
        self._is_set = True

    def wait(self) -> None:
        if self._is_set:
            self._event.synchronize()


class HostQueue:
    """The CPU: for tests of everything that is not the device itself."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    @contextmanager
    def active(self) -> Iterator[None]:
        yield

    def host_buffer(self, count: int) -> Tensor:
        return torch.empty(count, dtype=torch.int64)

    def mark(self) -> Mark:
        return _HostMark()

    def capture(self, act: Callable[[], T]) -> Callable[[], T]:
        return act


class _HostMark:
    def set(self) -> None:
        """Everything before it is done."""

    def wait(self) -> None:
        """Nothing to wait for."""


def queue_for(device: torch.device) -> DeviceQueue:
    """The queue of a device."""
    return CudaQueue(device) if device.type == "cuda" else HostQueue()
