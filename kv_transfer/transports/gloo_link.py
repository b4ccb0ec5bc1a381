"""A two-rank gloo group between two processes: how they meet, how its end is noticed and brought about.

No global process group, no TCPStore: the two addresses travel over the pair's rendezvous. What of gloo's TCP transport
this relies on (gloo/transport/tcp/pair.cc, unbound_buffer.cc):

* Data flows only after the receive was posted, and in the order of the sends: whoever has the second of two messages
  has the first.
* Receives are written only by the device's thread under the pair's lock while the pair is connected. Once any operation
  raised, the pair is closed, and nothing is written any more.
* An end, a reset and a wait that timed out close the pair and wake every *queued* operation, but not the one whose
  bytes are under way. So nobody waits for a payload: receivers wait for the small message behind it, senders for an
  answer.
* A message longer than its receive aborts the process, a shorter one leaves old bytes: sizes are fixed.
* A posted receive must not be dropped while the pair is open: the device's thread would spin on it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from datetime import timedelta

import torch
from torch.distributed import ProcessGroupGloo, Store, Work  # type: ignore[attr-defined]

from kv_transfer.frame import DESCRIPTOR_BYTES, Descriptor, FrameKind, expect, unpack
from kv_transfer.transports.background import start_thread
from kv_transfer.transports.interface import PairInfo, Rendezvous
from pdserve.errors import IncompatiblePeer, PeerLost, TransferCorrupt

SOURCE_RANK = 0
TARGET_RANK = 1
_SENTINEL_TAG = 2**31 - 1
_CLOSE_TAG = 2**31 - 3
_HELLO_TAG = 2**31 - 5  # all above framing.MAX_DATA_TAG
_FOREVER = timedelta(days=365)
_AT_ONCE = timedelta(milliseconds=1)


class RendezvousStore(Store):
    """The few calls that gloo makes at construction, carried by a Rendezvous."""

    def __init__(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        super().__init__()
        self._rendezvous = rendezvous
        self._timeout_s = timeout_s
        self._known: dict[str, bytes] = {}  # our own keys and those already fetched

    def set(self, key: str, value: str | bytes) -> None:
        raw = value.encode() if isinstance(value, str) else bytes(value)
        self._known[key] = raw
        self._rendezvous.set(f"gloo/{key}", raw)

    def get(self, key: str) -> bytes:
        if key not in self._known:
            self._known[key] = self._rendezvous.get(f"gloo/{key}", self._timeout_s)
        return self._known[key]

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        for key in keys:
            self.get(key)

    def check(self, keys: list[str]) -> bool:
        return all(key in self._known for key in keys)


class GlooDevice:
    """The process's listening address and network thread, shared by its pairs and made with the first one."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._lock = threading.Lock()
        self._device: ProcessGroupGloo.Device | None = None

    def get(self) -> ProcessGroupGloo.Device:
        with self._lock:
            if self._device is None:
                # Lazy pairs would shut the shared device down with the first that ends.
                self._device = ProcessGroupGloo.create_device(hostname=self._host, lazy_init=False)
            return self._device


def frame_tensor(frame: bytes | None = None) -> torch.Tensor:
    """A descriptor's 128 bytes, as gloo sends and receives them."""
    if frame is None:
        return torch.empty(DESCRIPTOR_BYTES, dtype=torch.uint8)
    return torch.frombuffer(bytearray(frame), dtype=torch.uint8)


def read_frame(tensor: torch.Tensor) -> Descriptor:
    """The descriptor that arrived; TransferCorrupt when it is none."""
    return unpack(tensor.numpy().tobytes())


class GlooLink:
    """One open group and the thread that notices its end."""

    def __init__(
        self, pair: PairInfo, rank: int, rendezvous: Rendezvous, device: ProcessGroupGloo.Device, timeout_s: float
    ) -> None:
        """Meet the peer and exchange hellos. Blocks; PeerLost or IncompatiblePeer."""
        self._peer = 1 - rank
        self._timeout = timedelta(seconds=timeout_s)
        self._group: ProcessGroupGloo | None = None
        self._watcher: threading.Thread | None = None
        self._works: list[Work] = []  # kept until the end
        self._sentinel_frame = frame_tensor()
        try:
            self._group = self._connect(rank, rendezvous, device, timeout_s)
            self._works.append(self.receive(self._sentinel_frame, _SENTINEL_TAG))
            self._greet(pair)
        except BaseException as error:
            self.close()  # whoever keeps the error must not keep the group's thread
            if isinstance(error, RuntimeError):
                raise PeerLost(f"no gloo pair: {error}") from error
            raise

    def _connect(
        self, rank: int, rendezvous: Rendezvous, device: ProcessGroupGloo.Device, timeout_s: float
    ) -> ProcessGroupGloo:
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [device]
        options._threads = 1
        options._timeout = self._timeout
        return ProcessGroupGloo(RendezvousStore(rendezvous, timeout_s), rank, 2, options)

    def _greet(self, pair: PairInfo) -> None:
        ours = Descriptor(FrameKind.HELLO, pair.nonce, pair.epoch, length=pair.block_bytes)
        theirs = frame_tensor()
        answer = self.receive(theirs, _HELLO_TAG)
        self._hello = frame_tensor(ours.pack())
        self._works += [answer, self.send(self._hello, _HELLO_TAG)]
        try:
            self.finish(answer)
            expect(read_frame(theirs), ours)
        except TransferCorrupt as error:
            raise IncompatiblePeer(f"the gloo peer is another: {error}") from error

    def send(self, tensor: torch.Tensor, tag: int) -> Work:
        """Queue a message. Keep the work and the tensor until the peer has it or the link is shut down."""
        work: Work = self._open_group().send([tensor], self._peer, tag)  # type: ignore[attr-defined]
        return work

    def receive(self, tensor: torch.Tensor, tag: int) -> Work:
        """Post a receive. Keep the work and the tensor until it finished or the link is shut down."""
        work: Work = self._open_group().recv([tensor], self._peer, tag)  # type: ignore[attr-defined]
        return work

    def finish(self, work: Work) -> None:
        """Wait for one operation. RuntimeError when the pair ended or it took too long, which ends the pair."""
        work.wait(self._timeout)

    def start(self, lost: Callable[[], None]) -> None:
        """Call `lost`, on a thread of its own, when the pair has ended, whoever ended it. Called once."""

        sentinel = self._works[0]

        def watch() -> None:
            with contextlib.suppress(RuntimeError):
                sentinel.wait(_FOREVER)  # nobody ever sends it
            self.shutdown()
            lost()

        self._watcher = start_thread("gloo-sentinel", watch)

    def shutdown(self) -> None:
        """End the pair on both sides. When this returns, gloo reads and writes no memory for it any more."""
        # The only way to close a pair that Python has: a wait that times out.
        with contextlib.suppress(RuntimeError):
            self.receive(self._sentinel_frame, _CLOSE_TAG).wait(_AT_ONCE)

    def close(self) -> None:
        """Shut down and let go of threads and sockets. The caller's works and threads must be done with it."""
        self.shutdown()
        if self._watcher is not None:
            self._watcher.join()
        self._group = None
        self._works.clear()

    def _open_group(self) -> ProcessGroupGloo:
        group = self._group
        if group is None:
            raise RuntimeError("the link is closed")
        return group
