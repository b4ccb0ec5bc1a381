"""Over TCP with torch.distributed's gloo: the source pushes what the target has credited.

    source                                   target
                                             post: receives for payload (tag + 1) and descriptor (tag)
      payload, straight from the pool  ──>   straight into the pool
      descriptor with its digest       ──>   checked against what was posted, digest against the bytes
      acknowledgement (tag)            <──   of the last of some blocks: the sender's window

The descriptor comes behind its payload: who has it has both, and it is the one that can be waited for (gloo_link).
"""

from __future__ import annotations

from kv_transfer.transports.background import call_in_thread
from kv_transfer.transports.faults import NO_FAULTS, Faults
from kv_transfer.transports.gloo_link import SOURCE_RANK, TARGET_RANK, GlooDevice, GlooLink
from kv_transfer.transports.gloo_payload import GlooIncoming, GlooOutgoing
from kv_transfer.transports.interface import DEFAULT_TIMEOUT_S, PairInfo, Rendezvous
from kv_transfer.transports.pushing import PushedTarget, PushingSource
from pdserve.kv_memory import KvMemory


class GlooTransport:
    """One two-rank gloo group per pair, over the address `host` of this machine."""

    name = "gloo"
    pushed = True

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        digests: bool = True,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        faults: Faults = NO_FAULTS,
    ) -> None:
        """Without `digests`, which both ends must be, TCP's checksum alone stands for the bytes."""
        self._device = GlooDevice(host)
        self._digests = digests
        self._timeout_s = timeout_s
        self._faults = faults

    def is_available(self, *, same_process: bool, same_host: bool) -> bool:
        return True

    async def open_source(self, pair: PairInfo, rendezvous: Rendezvous, memory: KvMemory) -> PushingSource:
        link = await self._meet(pair, SOURCE_RANK, rendezvous, memory)
        payload = GlooOutgoing(link, memory, self._faults, self._digests)
        return PushingSource("gloo", pair, link, payload, self._faults)

    async def open_target(self, pair: PairInfo, rendezvous: Rendezvous, memory: KvMemory) -> PushedTarget:
        link = await self._meet(pair, TARGET_RANK, rendezvous, memory)
        return PushedTarget("gloo", pair, link, GlooIncoming(link, memory, self._digests))

    async def _meet(self, pair: PairInfo, rank: int, rendezvous: Rendezvous, memory: KvMemory) -> GlooLink:
        assert pair.block_bytes == memory.block_bytes

        def connect() -> GlooLink:
            return GlooLink(pair, rank, rendezvous, self._device.get(), self._timeout_s)

        return await call_in_thread("gloo-open", connect, GlooLink.close)
