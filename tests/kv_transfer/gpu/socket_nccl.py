"""In place of NCCL: a Unix socket that behaves as badly.

Work is done in order by a "stream"; an operation whose peer is dead or silent never ends, until this end aborts. Then
it ends as if it had succeeded.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from kv_transfer.transports.background import start_thread
from kv_transfer.transports.interface import Rendezvous
from pdserve.errors import PeerLost


class _Mark:
    def __init__(self) -> None:
        self.passed = threading.Event()

    def wait(self) -> None:
        self.passed.wait()


class SocketNccl:
    """A Communicator."""

    def __init__(self, rendezvous: Rendezvous, rank: int, device: torch.device, timeout_s: float) -> None:
        self._socket = _meet(rendezvous, rank, timeout_s)
        self._aborted = threading.Event()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = start_thread("socket-nccl", self._run)

    def send(self, payload: Tensor) -> _Mark:
        return self._give(lambda: self._socket.sendall(_bytes_of(payload).cpu().numpy().data))

    def receive(self, payload: Tensor) -> _Mark:
        def read() -> None:
            host = torch.empty(payload.nbytes, dtype=torch.uint8)
            left = memoryview(host.numpy())
            while left:
                count = self._socket.recv_into(left)
                if not count:
                    raise OSError("the peer is gone, which NCCL does not notice")
                left = left[count:]
            _bytes_of(payload).copy_(host)

        return self._give(read)

    def abort(self) -> None:
        self._aborted.set()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer has ended it
        self._work.put(None)
        self._thread.join()
        self._socket.close()

    def _give(self, work: Callable[[], None]) -> _Mark:
        mark = _Mark()

        def act() -> None:
            try:
                work()
            except OSError:
                self._aborted.wait()
            mark.passed.set()

        self._work.put(act)
        return mark

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work


def _bytes_of(payload: Tensor) -> Tensor:
    return payload.view(torch.uint8).view(-1)


def _meet(rendezvous: Rendezvous, rank: int, timeout_s: float) -> socket.socket:
    try:
        if rank == 0:
            with socket.socket(socket.AF_UNIX) as listener:
                name = b"\0socket-nccl-" + os.urandom(8).hex().encode()
                listener.bind(name)
                listener.listen(1)
                listener.settimeout(timeout_s)
                rendezvous.set("nccl-id", name)
                connected, _ = listener.accept()
        else:
            connected = socket.socket(socket.AF_UNIX)
            connected.connect(rendezvous.get("nccl-id", timeout_s))
    except OSError as error:
        raise PeerLost(f"no peer: {error}") from error
    connected.settimeout(None)
    return connected
