"""A probe of the doctor with a fault put into it: `python faulty_probe.py FAULT`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from deploy.doctor.link_probe import main
from kv_transfer.selection import make_transports
from kv_transfer.transports.interface import PairInfo, Rendezvous, TargetChannel, Transport
from kv_transfer.transports.shared_memory import SharedMemoryTransport
from pdserve.errors import PeerLost
from pdserve.kv_memory import KvMemory

SLOW_S = 0.05


class SlowSharedMemory(SharedMemoryTransport):
    """Something else has the memory bus: each post of several blocks waits."""

    async def open_target(self, pair: PairInfo, rendezvous: Rendezvous, memory: KvMemory) -> TargetChannel:
        channel = await super().open_target(pair, rendezvous, memory)
        post = channel.post

        def slow_post(transfer_id: int, moves: Any) -> Any:
            time.sleep(SLOW_S if len(moves) > 1 else 0.0)
            return post(transfer_id, moves)

        channel.post = slow_post  # type: ignore[method-assign]
        return channel


class ForbiddenSharedMemory(SharedMemoryTransport):
    """Memory that the target may not map."""

    async def open_target(self, pair: PairInfo, rendezvous: Rendezvous, memory: KvMemory) -> TargetChannel:
        raise PeerLost("its pool cannot be mapped: Operation not permitted")


def faulty(kv_transport: str, host: str, gpu: Any) -> Mapping[str, Transport]:
    made = dict(make_transports(kv_transport, host, gpu))
    made["shm"] = {"slow": SlowSharedMemory, "forbidden": ForbiddenSharedMemory}[sys.argv[1]](timeout_s=2.0)
    return made


if __name__ == "__main__":
    if sys.argv[1] == "dies":
        sys.exit(7)
    main(faulty)
