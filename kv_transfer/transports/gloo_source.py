"""The prefill worker's end of a gloo pair: sends credited blocks, a bounded window ahead of what was acknowledged."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.distributed import Work

from kv_transfer.frame import FLAG_ACK_WANTED, Descriptor, FrameKind, expect, payload_digest
from kv_transfer.transports.background import Closing, Flag, JobThread
from kv_transfer.transports.faults import Faults
from kv_transfer.transports.gloo_link import MAX_DATA_TAG, GlooLink, frame_tensor, read_frame
from kv_transfer.transports.interface import BlockMove, ChannelStats, PairInfo, Receipt
from pdserve.errors import PeerLost, ServingError, TransferCorrupt
from pdserve.kv_memory import KvMemory

WINDOW_BYTES = 8 << 20
"""Sent between two acknowledgements; at most two windows are under way. Each has the link's timeout to itself."""
WINDOWS = 2


@dataclass(frozen=True, slots=True)
class _Send:
    transfer_id: int
    moves: tuple[BlockMove, ...]
    receipt: Receipt


@dataclass(slots=True)
class _Window:
    """Blocks under way, and the acknowledgement of the last of them. Keeps alive what gloo reads."""

    works: list[Work]
    frames: list[torch.Tensor]
    expected: Descriptor
    answer: torch.Tensor
    answered: Work


class GlooSource:
    """A SourceChannel; one thread hashes, sends and waits for acknowledgements, another watches for the peer's end."""

    def __init__(self, pair: PairInfo, link: GlooLink, memory: KvMemory, faults: Faults) -> None:
        self._loop = asyncio.get_running_loop()
        self._pair = pair
        self._link = link
        self._memory = memory
        self._faults = faults
        self._pool = torch.frombuffer(memory.data, dtype=torch.uint8).view(memory.num_blocks, memory.block_bytes)
        self._window_blocks = max(1, WINDOW_BYTES // memory.block_bytes)
        self._windows: deque[_Window] = deque()
        self._works: list[Work] = []  # of the window being filled
        self._frames: list[torch.Tensor] = []
        self._stats = ChannelStats()
        self._lost = Flag(self._loop)
        self._jobs: JobThread[_Send] = JobThread("gloo-send", self._send)
        self._closing = Closing("gloo-close", self._close)
        link.start(self._lost.raise_)

    @property
    def stats(self) -> ChannelStats:
        return self._stats

    async def send(self, transfer_id: int, moves: Sequence[BlockMove]) -> None:
        if self._lost.is_raised or self._closing.has_begun:
            raise PeerLost("the pair is closed")
        receipt = Receipt(self._loop)
        self._jobs.submit(_Send(transfer_id, tuple(moves), receipt))
        await receipt.wait()

    async def wait_lost(self) -> None:
        await self._lost.wait()

    async def close(self) -> None:
        await self._closing.run()

    def _close(self) -> None:
        self._lost.raise_()
        self._link.shutdown()
        for job in self._jobs.stop():
            job.receipt.settle(PeerLost("the pair was closed"))
        self._jobs.join()
        self._windows.clear()
        self._works, self._frames = [], []
        self._link.close()

    def _send(self, job: _Send) -> None:
        began = time.perf_counter()
        error: ServingError | None = None
        try:
            for position, move in enumerate(job.moves, 1):
                is_last = position == len(job.moves)
                self._send_block(job.transfer_id, move, is_last or position % self._window_blocks == 0)
                while len(self._windows) >= (1 if is_last else WINDOWS):
                    self._finish_window()
        except ServingError as refused:
            error = refused
        except Exception as ended:  # gloo raises RuntimeError for everything; its thread serves other sends
            error = PeerLost(f"gloo send: {ended}")
        if error is not None:
            self._link.shutdown()  # from here on gloo reads no block
            self._lost.raise_()
        moved = len(job.moves) if error is None else 0
        self._stats = replace(
            self._stats,
            moved_bytes=self._stats.moved_bytes + moved * self._memory.block_bytes,
            moved_blocks=self._stats.moved_blocks + moved,
            busy_s=self._stats.busy_s + time.perf_counter() - began,
        )
        job.receipt.settle(error)

    def _send_block(self, transfer_id: int, move: BlockMove, wants_ack: bool) -> None:
        descriptor = self._describe(transfer_id, move, FLAG_ACK_WANTED if wants_ack else 0)
        answer = frame_tensor()
        answered = self._link.receive(answer, move.tag) if wants_ack else None
        frame = frame_tensor(self._faults.alter(descriptor).pack())
        self._frames.append(frame)
        self._works.append(self._link.send(self._pool[move.source_block], move.tag + 1))
        self._works.append(self._link.send(frame, move.tag))
        if answered is not None:
            expected = replace(descriptor, kind=FrameKind.ACK)
            self._windows.append(_Window(self._works, self._frames, expected, answer, answered))
            self._works, self._frames = [], []

    def _describe(self, transfer_id: int, move: BlockMove, flags: int) -> Descriptor:
        assert move.tag % 2 == 0 and 0 <= move.tag < MAX_DATA_TAG and 0 <= move.source_block < self._memory.num_blocks
        generation = self._memory.generations[move.source_block]
        if generation != move.source_generation:
            self._stats = replace(self._stats, stale_blocks=self._stats.stale_blocks + 1)
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

    def _finish_window(self) -> None:
        window = self._windows[0]
        self._link.finish(window.answered)
        expect(read_frame(window.answer), window.expected)
        self._windows.popleft()
