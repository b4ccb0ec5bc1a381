"""NCCL between two workers: a communicator of two ranks and nothing else, made per pair, aborted with it.

NOT YET RUN ON A GPU. What this relies on, to be shown there (docs/gpu-transports.md):

* ProcessGroupNCCL can stand alone; of its store it uses set, get and clone, here carried by the pair's rendezvous, so
  every pair has a unique id of its own and no port listens for it.
* Between two ranks, messages match in the order in which both sides give them; there are no tags.
* A message in a coalesced group runs on the group's own communicator; outside of one, older releases make a second.
* abort() from another thread lets kernels that wait for a dead peer end. The stream goes on behind them as if they had
  succeeded: whoever waited must ask whether the communicator was aborted.
* The environment of gpu_choice.nccl_environment stood when the process began.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from kv_transfer.transports.gloo_link import RendezvousStore
from kv_transfer.transports.gpu_copies import Mark
from kv_transfer.transports.interface import Rendezvous
from pdserve.errors import IncompatiblePeer

_MANY_TIMES = 100
"""Of our own timeout: torch's must never come first, its answer to one is to end the process."""


class Communicator(Protocol):
    """Two ranks; `send` here and `receive` there match in order. One thread gives, any thread aborts."""

    def send(self, payload: Tensor) -> Mark:
        """Start to send a contiguous tensor; past the mark it may be written again. The mark keeps it alive."""
        ...

    def receive(self, payload: Tensor) -> Mark:
        """Start to receive as many bytes as the peer sends; past the mark they are there. The mark keeps it alive."""
        ...

    def abort(self) -> None:
        """End it, and let marks be passed that never would be, with whatever bytes. Safe to repeat; may block."""
        ...


Connect = Callable[[Rendezvous, int, torch.device, float], Communicator]
"""Meets the peer: rendezvous, own rank, device, seconds. May return before the peer has come."""


class _PairStore(RendezvousStore):
    """What ProcessGroupNCCL asks of a store beyond what gloo does."""

    def clone(self) -> _PairStore:
        return self


class NcclCommunicator:
    """NOT YET RUN ON A GPU."""

    def __init__(self, rendezvous: Rendezvous, rank: int, device: torch.device, timeout_s: float) -> None:
        # Builds of torch without CUDA do not have it: looked up when used.
        nccl: Any = getattr(dist, "ProcessGroupNCCL", None)
        if nccl is None:
            raise IncompatiblePeer("this build of torch has no NCCL")
        options = nccl.Options()
        options._timeout = timedelta(seconds=timeout_s * _MANY_TIMES)
        self._peer = 1 - rank
        self._device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._store = _PairStore(rendezvous, timeout_s)  # its calls are answered only while Python keeps it
            self._group = nccl(self._store, rank, 2, options)
            self._group.eager_connect_single_device(device)

    def send(self, payload: Tensor) -> Mark:
        return self._give(lambda: self._group.send([payload], self._peer, 0), payload)

    def receive(self, payload: Tensor) -> Mark:
        return self._give(lambda: self._group.recv([payload], self._peer, 0), payload)

    def abort(self) -> None:
        self._group.abort()

    def _give(self, work: Callable[[], object], payload: Tensor) -> Mark:
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            self._group._start_coalescing()
            work()
            group = self._group._end_coalescing()
            group.wait()  # our stream waits, the host does not
            event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            event.record(self._stream)
        return _NcclMark(event, (payload, group))


class _NcclMark:
    def __init__(self, event: torch.cuda.Event, kept: tuple[object, ...]) -> None:
        self._event = event
        self._kept = kept

    def wait(self) -> None:
        self._event.synchronize()


def nccl_version() -> tuple[int, int] | None:
    """The release that this torch loads; None where there is none."""
    if not torch.cuda.is_available() or not dist.is_nccl_available():
        return None
    major, minor, *_ = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    return int(major), int(minor)
