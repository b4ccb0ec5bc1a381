"""The prefill worker's end of a gloo pair: hashes and sends credited blocks, then waits until the target has them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.distributed import Work

from kv_transfer.frame import FLAG_ACK_WANTED, Descriptor, FrameKind, expect, payload_digest
from kv_transfer.transports.background import Closing, Flag, JobThread
from kv_transfer.transports.faults import Faults
from kv_transfer.transports.gloo_link import MAX_DATA_TAG, GlooLink, frame_tensor, read_frame
from kv_transfer.transports.interface import BlockMove, ChannelStats, PairInfo, Receipt
from pdserve.errors import PeerLost, QueueFull, ServingError, TransferCorrupt
from pdserve.kv_memory import KvMemory

WINDOW_BYTES = 8 << 20
"""Sent per acknowledgement, each of which has the link's timeout to itself. How much is under way credits decide."""
MAX_SENDS = 1024
"""Calls of send() outstanding on one pair."""


@dataclass(frozen=True, slots=True)
class _Send:
    transfer_id: int
    moves: tuple[BlockMove, ...]
    receipt: Receipt
    began_s: float


@dataclass(frozen=True, slots=True)
class _Window:
    """Blocks under way and the acknowledgement of the last of them. Keeps alive what gloo reads."""

    works: list[Work]
    frames: list[torch.Tensor]
    expected: Descriptor
    answer: torch.Tensor
    answered: Work
    completes: _Send | None  # the send whose last blocks these are


class GlooSource:
    """A SourceChannel; one thread hashes and sends, one waits for acknowledgements, one watches for the peer's end."""

    def __init__(self, pair: PairInfo, link: GlooLink, memory: KvMemory, faults: Faults) -> None:
        self._loop = asyncio.get_running_loop()
        self._pair = pair
        self._link = link
        self._memory = memory
        self._faults = faults
        self._pool = torch.frombuffer(memory.data, dtype=torch.uint8).view(memory.num_blocks, memory.block_bytes)
        self._window_blocks = max(1, WINDOW_BYTES // memory.block_bytes)
        self._room = threading.BoundedSemaphore(MAX_SENDS)
        self._moved = ChannelStats()  # written by the thread that waits
        self._stale_blocks = 0  # written by the thread that sends
        self._idle_s = time.perf_counter()  # since when nothing was under way, as far as the waiting thread knows
        self._lost = Flag(self._loop)
        self._finisher: JobThread[_Window] = JobThread("gloo-acknowledged", self._finish, max_jobs=1 << 30)
        self._sender: JobThread[_Send] = JobThread("gloo-send", self._send, MAX_SENDS)
        self._closing = Closing("gloo-close", self._close)
        link.start(self._lost.raise_)

    @property
    def stats(self) -> ChannelStats:
        return replace(self._moved, stale_blocks=self._stale_blocks)

    async def send(self, transfer_id: int, moves: Sequence[BlockMove]) -> None:
        if self._lost.is_raised or self._closing.has_begun:
            raise PeerLost("the pair is closed")
        if not moves:
            return
        if not self._room.acquire(blocking=False):
            raise QueueFull(f"{MAX_SENDS:,} sends wait on one pair")
        receipt = Receipt(self._loop)
        self._sender.submit(_Send(transfer_id, tuple(moves), receipt, time.perf_counter()))
        try:
            await receipt.wait()
        finally:
            self._room.release()

    async def wait_lost(self) -> None:
        await self._lost.wait()

    async def close(self) -> None:
        await self._closing.run()

    def _close(self) -> None:
        self._lost.raise_()
        self._link.shutdown()
        for job in self._sender.stop():
            job.receipt.settle(PeerLost("the pair was closed"))
        self._sender.join()
        for window in self._finisher.stop():
            self._settle(window, PeerLost("the pair was closed"))
        self._finisher.join()
        self._link.close()

    def _fail(self, ended: Exception) -> ServingError:
        """The pair is over: shut down first, so that no block is read once its send is settled."""
        self._link.shutdown()
        self._lost.raise_()
        # gloo raises RuntimeError for everything
        return ended if isinstance(ended, ServingError) else PeerLost(f"gloo send: {ended}")

    def _send(self, job: _Send) -> None:
        works: list[Work] = []
        frames: list[torch.Tensor] = []
        try:
            for position, move in enumerate(job.moves, 1):
                is_last = position == len(job.moves)
                if not is_last and position % self._window_blocks:
                    self._send_block(self._describe(job.transfer_id, move, 0), works, frames)
                    continue
                descriptor = self._describe(job.transfer_id, move, FLAG_ACK_WANTED)
                answer = frame_tensor()
                answered = self._link.receive(answer, move.tag)
                self._send_block(descriptor, works, frames)
                expected = replace(descriptor, kind=FrameKind.ACK)
                self._finisher.submit(_Window(works, frames, expected, answer, answered, job if is_last else None))
                works, frames = [], []
        except Exception as ended:  # the thread serves other sends
            job.receipt.settle(self._fail(ended))

    def _send_block(self, descriptor: Descriptor, works: list[Work], frames: list[torch.Tensor]) -> None:
        frame = frame_tensor(self._faults.alter(descriptor).pack())
        frames.append(frame)
        works.append(self._link.send(self._pool[descriptor.source_block], descriptor.tag + 1))
        works.append(self._link.send(frame, descriptor.tag))

    def _describe(self, transfer_id: int, move: BlockMove, flags: int) -> Descriptor:
        assert move.tag % 2 == 0 and 0 <= move.tag < MAX_DATA_TAG and 0 <= move.source_block < self._memory.num_blocks
        generation = self._memory.generations[move.source_block]
        if generation != move.source_generation:
            self._stale_blocks += 1
            raise TransferCorrupt(
                f"block {move.source_block:,} is of generation {generation:,}, not {move.source_generation:,}"
            )
        payload = self._memory.block(move.source_block)
        descriptor = Descriptor(
            kind=FrameKind.BLOCK, nonce=self._pair.nonce, epoch=self._pair.epoch, transfer_id=transfer_id,
            index=move.index, tag=move.tag, source_block=move.source_block, source_generation=generation,
            length=len(payload), digest=payload_digest(payload), flags=flags,
        )  # fmt: skip
        self._faults.after_digest(payload)
        return descriptor

    def _finish(self, window: _Window) -> None:
        try:
            self._link.finish(window.answered)
            expect(read_frame(window.answer), window.expected)
        except Exception as ended:
            self._settle(window, self._fail(ended))
        else:
            self._settle(window, None)

    def _settle(self, window: _Window, error: ServingError | None) -> None:
        job = window.completes
        if job is None:
            return
        if error is None:
            now = time.perf_counter()
            self._moved = ChannelStats(
                self._moved.moved_bytes + len(job.moves) * self._memory.block_bytes,
                self._moved.moved_blocks + len(job.moves),
                self._moved.busy_s + now - max(job.began_s, self._idle_s),
            )
            self._idle_s = now
        job.receipt.settle(error)
