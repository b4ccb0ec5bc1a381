"""Between any two pools of which one lies on a GPU: pinned host memory on each side, gloo between them.

NOT YET RUN ON A GPU; on the CPU tests/kv_transfer/gpu runs all of it with host pools (gpu_staging.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import numpy as np

from kv_transfer.transports.background import call_in_thread
from kv_transfer.transports.checks import StaleBlock, check_credited, check_generations, check_tags
from kv_transfer.transports.gloo import GlooTransport
from kv_transfer.transports.gpu_copies import (
    CopyQueue,
    MakeQueue,
    PoolOf,
    as_words,
    copy_blocks,
    host_pool,
    pin,
    queue_for,
)
from kv_transfer.transports.gpu_staging import Chunk, Chunks, StagedPump
from kv_transfer.transports.interface import (
    DEFAULT_TIMEOUT_S,
    BlockMove,
    ChannelStats,
    PairInfo,
    Receipt,
    Rendezvous,
    SourceChannel,
    TargetChannel,
    Transport,
)
from pdserve.kv_memory import KvMemory


class _Staging:
    """The staging memory of one end beside its pool, and copies between the two."""

    def __init__(self, memory: KvMemory, pool_of: PoolOf, make_queue: MakeQueue) -> None:
        self.memory = Chunks(memory.block_bytes).new_memory()
        self.pool = as_words(pool_of(memory), memory.block_bytes)
        self.slots = as_words(host_pool(self.memory), memory.block_bytes)
        self.generations = np.frombuffer(memory.generations, np.uint64)
        self.slot_generations = np.frombuffer(self.memory.generations, np.uint64)
        self.release: Callable[[], object] = pin(self.memory, self.pool.device) if self.pool.is_cuda else lambda: None
        self._queue: CopyQueue = make_queue(self.pool.device)

    def fetch(self, chunk: Chunk) -> None:
        """Pool to slots, under the generations that the blocks still have when the copy is over. Blocks."""
        check_credited(chunk.frame.sources, chunk.frame.tags, len(self.pool))
        slots = np.array(chunk.slots)
        self._queue.give(lambda: copy_blocks(self.pool, chunk.frame.sources, self.slots, slots))
        self._queue.mark().wait()
        check_generations(chunk.frame, self.generations)
        self.slot_generations[slots] = chunk.frame.generations

    def store(self, chunk: Chunk) -> None:
        """Slots to pool. Blocks."""
        slots = np.array(chunk.slots)
        self._queue.give(lambda: copy_blocks(self.slots, slots, self.pool, chunk.frame.targets))
        self._queue.mark().wait()


class StagedSource:
    """A SourceChannel."""

    def __init__(self, inner: SourceChannel, staging: _Staging) -> None:
        self._inner = inner
        self._staging = staging
        self._stale_blocks = 0
        release = staging.release
        self._pump = StagedPump(inner, staging.memory.block_bytes, self._begin, _nothing, lambda: (release(), None)[1])

    @property
    def stats(self) -> ChannelStats:
        stats = self._inner.stats
        return replace(stats, stale_blocks=stats.stale_blocks + self._stale_blocks)

    async def send(self, transfer_id: int, moves: Sequence[BlockMove]) -> None:
        await self._pump.submit(transfer_id, tuple(moves)).wait()

    async def wait_lost(self) -> None:
        await self._inner.wait_lost()

    async def close(self) -> None:
        await self._pump.close()

    async def _begin(self, chunk: Chunk) -> Awaitable[None]:
        try:
            await call_in_thread("staged-copy", lambda: self._staging.fetch(chunk))
        except StaleBlock:
            self._stale_blocks += 1
            raise
        return self._inner.send(chunk.transfer_id, chunk.staged)


class StagedTarget:
    """A TargetChannel."""

    pushed = True

    def __init__(self, inner: TargetChannel, staging: _Staging) -> None:
        self._inner = inner
        self._staging = staging
        self._next_tag = 0
        release = staging.release
        self._pump = StagedPump(
            inner, staging.memory.block_bytes, self._begin, self._finish, lambda: (release(), None)[1]
        )

    @property
    def stats(self) -> ChannelStats:
        return self._inner.stats

    def post(self, transfer_id: int, moves: Sequence[BlockMove]) -> Receipt:
        self._pump.check_open()
        next_tag = check_tags(moves, self._next_tag, len(self._staging.pool))
        receipt = self._pump.submit(transfer_id, tuple(moves))
        self._next_tag = next_tag
        return receipt

    async def wait_lost(self) -> None:
        await self._inner.wait_lost()

    async def close(self) -> None:
        await self._pump.close()

    async def _begin(self, chunk: Chunk) -> Awaitable[None]:
        return self._inner.post(chunk.transfer_id, chunk.staged).wait()

    async def _finish(self, chunk: Chunk) -> None:
        await call_in_thread("staged-copy", lambda: self._staging.store(chunk))


async def _nothing(chunk: Chunk) -> None:
    """The source has nothing left to do for a chunk that was answered."""


class StagedTransport:
    """Pushes between staging memories over `inner`, a pushed transport of host memory: gloo unless given."""

    name = "staged"
    pushed = True

    def __init__(
        self, pool_of: PoolOf, *, host: str = "127.0.0.1", inner: Transport | None = None,
        make_queue: MakeQueue = queue_for, timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:  # fmt: skip
        self._pool_of = pool_of
        self._inner = inner or GlooTransport(host=host, timeout_s=timeout_s)
        assert self._inner.pushed
        self._make_queue = make_queue

    def is_available(self, *, same_process: bool, same_host: bool) -> bool:
        return self._inner.is_available(same_process=same_process, same_host=same_host)

    async def open_source(self, pair: PairInfo, rendezvous: Rendezvous, memory: KvMemory) -> StagedSource:
        assert pair.block_bytes == memory.block_bytes
        staging = await self._stage(memory)
        try:
            return StagedSource(await self._inner.open_source(pair, rendezvous, staging.memory), staging)
        except BaseException:
            staging.release()
            raise

    async def open_target(self, pair: PairInfo, rendezvous: Rendezvous, memory: KvMemory) -> StagedTarget:
        assert pair.block_bytes == memory.block_bytes
        staging = await self._stage(memory)
        try:
            return StagedTarget(await self._inner.open_target(pair, rendezvous, staging.memory), staging)
        except BaseException:
            staging.release()
            raise

    async def _stage(self, memory: KvMemory) -> _Staging:
        """In a thread: pinning touches every page."""
        return await call_in_thread(
            "staged-open", lambda: _Staging(memory, self._pool_of, self._make_queue), lambda staging: staging.release()
        )
