"""The control link of an NCCL pair, which is a gloo pair, and the communicator that lives and dies with it.

Everything that is not payload goes over gloo, between the hosts' processors: the hello, a descriptor before each frame,
an answer behind it, and the sentinel that notices a dead peer at once. NCCL alone would tell none of that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo

from kv_transfer.transports.gloo_link import SOURCE_RANK, GlooLink
from kv_transfer.transports.gpu_copies import Mark
from kv_transfer.transports.interface import CannotOpen, PairInfo, Rendezvous
from kv_transfer.transports.nccl_communicator import Communicator
from kv_transfer.transports.nccl_watchdog import Watchdog
from pdserve.errors import IncompatiblePeer, PeerLost


class NcclLink(GlooLink):
    """A GlooLink with a communicator: when either ends, both do."""

    def __init__(
        self, pair: PairInfo, rank: int, rendezvous: Rendezvous, gloo_device: ProcessGroupGloo.Device,
        connect: Callable[[], Communicator], device: torch.device, timeout_s: float,
    ) -> None:  # fmt: skip
        """Meet the peer on both ways. Blocks; PeerLost or IncompatiblePeer."""
        self._watchdog: Watchdog | None = None
        super().__init__(pair, rank, rendezvous, gloo_device, timeout_s)
        try:
            self._communicator = connect()
            self._watchdog = Watchdog(self._communicator, timeout_s)
            self._try_out(pair, rank, device)
        except BaseException as error:
            self.close()
            if isinstance(error, RuntimeError | PeerLost):  # also when it does not connect in time
                raise CannotOpen(f"no NCCL communicator: {error}") from error
            raise

    def send_payload(self, payload: Tensor) -> Mark:
        """Start to send; the peer must receive as many bytes, in the same order."""
        return self._communicator.send(payload)

    def receive_payload(self, payload: Tensor) -> Mark:
        """Start to receive what the peer sends next."""
        return self._communicator.receive(payload)

    def finish_payload(self, mark: Mark) -> None:
        """Wait for a payload. PeerLost when the pair ended or it took too long, which ends the pair."""
        assert self._watchdog is not None
        self._watchdog.wait(mark)

    def shutdown(self) -> None:
        """End the pair on both sides. NCCL may touch what it was given a little longer: only buffers of the pair."""
        super().shutdown()
        if self._watchdog is not None:
            self._watchdog.fire("the pair ended")

    def close(self) -> None:
        super().close()
        if self._watchdog is not None:
            self._watchdog.close()

    def _try_out(self, pair: PairInfo, rank: int, device: torch.device) -> None:
        """The first message connects the two, which takes long, and shows that bytes travel the right way."""
        nonce = torch.frombuffer(bytearray(pair.nonce), dtype=torch.uint8)
        if rank == SOURCE_RANK:
            self.finish_payload(self.send_payload(nonce.to(device)))
            return
        arrived = torch.zeros_like(nonce, device=device)
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # the zeros came by this one
        self.finish_payload(self.receive_payload(arrived))
        if not torch.equal(arrived.cpu(), nonce):
            raise IncompatiblePeer("NCCL brought something else than the source sent")
