"""Between GPUs by NCCL: the source pushes what the target has credited, payload over NCCL, all else over gloo.

NOT YET RUN ON A GPU; everything but NCCL and CUDA themselves is run on the CPU by tests/kv_transfer/gpu.

One communicator of two ranks per pair, under an id of its own; an idle pair is closed by its owner (HandoffSource keeps
at most MAX_PAIRS), because a communicator holds 50 to 100 MB of the GPU. Rebuilding one makes everything anew.
"""

from __future__ import annotations

from kv_transfer.transports.background import call_in_thread
from kv_transfer.transports.faults import NO_FAULTS, Faults
from kv_transfer.transports.gloo_link import SOURCE_RANK, TARGET_RANK, GlooDevice
from kv_transfer.transports.gpu_copies import MakeQueue, PoolOf, as_words, queue_for
from kv_transfer.transports.interface import DEFAULT_TIMEOUT_S, PairInfo, Rendezvous
from kv_transfer.transports.nccl_communicator import Communicator, Connect, NcclCommunicator
from kv_transfer.transports.nccl_link import NcclLink
from kv_transfer.transports.nccl_payload import NcclIncoming, NcclOutgoing
from kv_transfer.transports.pushing import PushedTarget, PushingSource
from pdserve.kv_memory import KvMemory


class NcclTransport:
    """Pushes from GPU to GPU; `host` is this machine's address for the control link. NOT YET RUN ON A GPU."""

    name = "nccl"
    pushed = True

    def __init__(
        self, pool_of: PoolOf, *, host: str = "127.0.0.1", connect: Connect = NcclCommunicator,
        make_queue: MakeQueue = queue_for, digests: bool = False, timeout_s: float = DEFAULT_TIMEOUT_S,
        faults: Faults = NO_FAULTS,
    ) -> None:  # fmt: skip
        """With `digests`, which both ends must have, each block's sum is compared: the links check only themselves."""
        self._pool_of = pool_of
        self._gloo = GlooDevice(host)
        self._connect = connect
        self._make_queue = make_queue
        self._digests = digests
        self._timeout_s = timeout_s
        self._faults = faults

    def is_available(self, *, same_process: bool, same_host: bool) -> bool:
        """Whether the two GPUs may form a communicator is for gpu_choice to know."""
        return True

    async def open_source(self, pair: PairInfo, rendezvous: Rendezvous, memory: KvMemory) -> PushingSource:
        link = await self._meet(pair, SOURCE_RANK, rendezvous, memory)
        blocks = as_words(self._pool_of(memory), pair.block_bytes)
        queue = self._make_queue(blocks.device)
        payload = NcclOutgoing(link, memory, blocks, queue, self._faults, self._digests)
        return PushingSource("nccl", pair, link, payload, self._faults)

    async def open_target(self, pair: PairInfo, rendezvous: Rendezvous, memory: KvMemory) -> PushedTarget:
        link = await self._meet(pair, TARGET_RANK, rendezvous, memory)
        blocks = as_words(self._pool_of(memory), pair.block_bytes)
        queue = self._make_queue(blocks.device)
        payload = NcclIncoming(link, blocks, pair.block_bytes, queue, self._digests)
        return PushedTarget("nccl", pair, link, payload)

    async def _meet(self, pair: PairInfo, rank: int, rendezvous: Rendezvous, memory: KvMemory) -> NcclLink:
        assert pair.block_bytes == memory.block_bytes
        device = self._pool_of(memory).device

        def meet() -> NcclLink:
            def connect() -> Communicator:
                return self._connect(rendezvous, rank, device, self._timeout_s)

            return NcclLink(pair, rank, rendezvous, self._gloo.get(), connect, device, self._timeout_s)

        return await call_in_thread("nccl-open", meet, NcclLink.close)
