"""On one host, between GPUs that can read one another: the target maps the source's GPU pool and copies blocks itself.

    source                                     target
      GPU pool: CUDA's handle  ── rendezvous ──>  mapped once per pair
      host memory: generations  ── Unix socket ──>  mapped read-only            pool_link, as with shared memory
      ...                                         generations, copy, event, generations again

NOT YET RUN ON A GPU; everything but CUDA itself is run on the CPU by tests/kv_transfer/gpu.

The order of work on two GPU contexts is told by messages, not by interprocess events: the source announces a block when
the step that wrote it has ended on its device, the target answers when its copies have ended on its own. An event of a
process that was killed in the middle of a step might never come, and would hold the target's stream and its blocks.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from torch import Tensor

from kv_transfer.transports.background import Flag, call_in_thread
from kv_transfer.transports.cuda_ipc_handle import CudaPoolSharing, PoolSharing
from kv_transfer.transports.device_copies import DeviceCopies
from kv_transfer.transports.fetching import FetchingTarget
from kv_transfer.transports.gpu_copies import MakeQueue, PoolOf, as_words, queue_for
from kv_transfer.transports.interface import DEFAULT_TIMEOUT_S, PairInfo, Rendezvous
from kv_transfer.transports.pool_link import MappedPool, PoolLink, map_pool, offer_pool
from kv_transfer.transports.pull import PullSource
from pdserve.errors import IncompatiblePeer, PeerLost
from pdserve.kv_memory import KvMemory

_KEY = "cuda-ipc"


@dataclass(slots=True)
class _Mapped:
    """What the target holds of the source."""

    host: MappedPool
    blocks: Tensor | None

    def close(self) -> None:
        self.blocks = None
        self.host.close()


class CudaIpcTransport:
    """Fetches from GPU memory of another process of the same user and host. NOT YET RUN ON A GPU."""

    name = "cuda_ipc"
    pushed = False

    def __init__(
        self, pool_of: PoolOf, *, sharing: PoolSharing | None = None, make_queue: MakeQueue = queue_for,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:  # fmt: skip
        self._pool_of = pool_of
        self._sharing = sharing or CudaPoolSharing()
        self._make_queue = make_queue
        self._timeout_s = timeout_s

    def is_available(self, *, same_process: bool, same_host: bool) -> bool:
        """Whether the GPUs reach one another is for gpu_choice to know; a process cannot map its own memory."""
        return same_host and not same_process

    async def open_source(self, pair: PairInfo, rendezvous: Rendezvous, memory: KvMemory) -> PullSource:
        assert pair.block_bytes == memory.block_bytes

        def meet() -> PoolLink:
            rendezvous.set(_KEY, self._sharing.export(self._pool_of(memory)))
            return offer_pool(pair, rendezvous, memory, self._timeout_s)

        link = await call_in_thread("cuda-ipc-open", meet, PoolLink.close)
        lost = Flag(asyncio.get_running_loop())
        link.start(_refuse, lost.raise_)
        return PullSource("cuda-ipc", lost, link.close)

    async def open_target(self, pair: PairInfo, rendezvous: Rendezvous, memory: KvMemory) -> FetchingTarget:
        assert pair.block_bytes == memory.block_bytes
        mapped = await call_in_thread("cuda-ipc-open", lambda: self._map(pair, rendezvous), _Mapped.close)
        assert mapped.blocks is not None
        target = as_words(self._pool_of(memory), pair.block_bytes)
        lost = Flag(asyncio.get_running_loop())
        mapped.host.link.start(_refuse, lost.raise_)
        source, mapped.blocks = as_words(mapped.blocks, pair.block_bytes), None
        queue = self._make_queue(target.device)
        copies = DeviceCopies(source, mapped.host.pool.generations, target, queue, lost)
        return FetchingTarget("cuda-ipc", copies, lost, mapped.close)

    def _map(self, pair: PairInfo, rendezvous: Rendezvous) -> _Mapped:
        """Blocks. The link proves that it is this pair's source; only then is its card looked at."""
        host = map_pool(pair, rendezvous, self._timeout_s)
        try:
            blocks = self._sharing.open(rendezvous.get(_KEY, self._timeout_s))
            if blocks.shape != (host.pool.num_blocks, host.pool.block_bytes):
                raise IncompatiblePeer(f"the source's GPU pool is {tuple(blocks.shape)}, its host memory another")
            return _Mapped(host, blocks)
        except BaseException:
            host.close()
            raise


def _refuse(packet: bytes) -> None:
    raise PeerLost(f"the peer sent {len(packet):,} bytes, expected none")
