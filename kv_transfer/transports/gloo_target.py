"""The decode worker's end of a gloo pair: receives credited blocks in place and verifies each."""

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
from kv_transfer.transports.gloo_link import MAX_DATA_TAG, GlooLink, frame_tensor, read_frame
from kv_transfer.transports.interface import BlockMove, ChannelStats, PairInfo, Receipt
from pdserve.errors import InvariantViolation, PeerLost, QueueFull, ServingError, TransferCorrupt
from pdserve.kv_memory import KvMemory

MAX_POSTS = 1024
"""Receipts outstanding on one pair."""


@dataclass(frozen=True, slots=True)
class _Post:
    transfer_id: int
    moves: tuple[BlockMove, ...]
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class _Receive:
    """One block's two posted receives. Kept until both finished or the link is shut down."""

    move: BlockMove
    payload: Work
    frame: torch.Tensor
    described: Work


class GlooTarget:
    """A TargetChannel; one thread posts receives, one verifies in order of posting, one watches for the peer's end.

    Posting has its own thread because gloo's device thread holds the pair's lock for as long as bytes keep coming. Data
    flows only into posted receives, so a credit may overtake its post.
    """

    pushed = True

    def __init__(self, pair: PairInfo, link: GlooLink, memory: KvMemory) -> None:
        self._loop = asyncio.get_running_loop()
        self._pair = pair
        self._link = link
        self._memory = memory
        self._pool = torch.frombuffer(memory.data, dtype=torch.uint8).view(memory.num_blocks, memory.block_bytes)
        self._next_tag = 0
        self._room = threading.BoundedSemaphore(MAX_POSTS)
        self._stats = ChannelStats()
        self._lost = Flag(self._loop)
        self._verifier: JobThread[tuple[_Post, list[_Receive]]] = JobThread("gloo-verify", self._verify, MAX_POSTS)
        self._poster: JobThread[_Post] = JobThread("gloo-post", self._post, MAX_POSTS)
        self._closing = Closing("gloo-close", self._close)
        link.start(self._lost.raise_)

    @property
    def stats(self) -> ChannelStats:
        return self._stats

    def post(self, transfer_id: int, moves: Sequence[BlockMove]) -> Receipt:
        if self._lost.is_raised or self._closing.has_begun:
            raise PeerLost("the pair is closed")
        self._check(moves)
        if not self._room.acquire(blocking=False):
            raise QueueFull(f"{MAX_POSTS:,} transfers wait on one pair")
        receipt = Receipt(self._loop)
        self._poster.submit(_Post(transfer_id, tuple(moves), receipt))
        return receipt

    async def wait_lost(self) -> None:
        await self._lost.wait()

    async def close(self) -> None:
        await self._closing.run()

    def _check(self, moves: Sequence[BlockMove]) -> None:
        next_tag = self._next_tag
        for move in moves:
            assert 0 <= move.target_block < self._memory.num_blocks
            if move.tag % 2 or not self._next_tag <= move.tag < MAX_DATA_TAG:
                raise InvariantViolation(f"tag {move.tag:,} is odd, was used, or is past {MAX_DATA_TAG:,}")
            next_tag = max(next_tag, move.tag + 2)
        self._next_tag = next_tag

    def _close(self) -> None:
        self._lost.raise_()
        self._link.shutdown()
        for post in self._poster.stop():
            self._settle(post, PeerLost("the pair was closed"))
        self._poster.join()
        for post, _ in self._verifier.stop():
            self._settle(post, PeerLost("the pair was closed"))
        self._verifier.join()
        self._link.close()

    def _settle(self, post: _Post, error: ServingError | None) -> None:
        self._room.release()
        post.receipt.settle(error)

    def _fail(self, post: _Post, error: ServingError) -> None:
        """The pair is over; shut down first, so that nothing is written once the receipt is settled."""
        self._link.shutdown()
        self._lost.raise_()
        self._settle(post, error)

    def _post(self, post: _Post) -> None:
        receives: list[_Receive] = []
        try:
            for move in post.moves:
                payload = self._link.receive(self._pool[move.target_block], move.tag + 1)
                frame = frame_tensor()
                receives.append(_Receive(move, payload, frame, self._link.receive(frame, move.tag)))
            self._verifier.submit((post, receives))
        except Exception as ended:  # gloo raises RuntimeError for everything
            self._fail(post, ended if isinstance(ended, ServingError) else PeerLost(f"gloo receive: {ended}"))

    def _verify(self, posted: tuple[_Post, list[_Receive]]) -> None:
        post, receives = posted
        began = time.perf_counter()
        try:
            for receive in receives:
                self._verify_block(post.transfer_id, receive)
            error: ServingError | None = None
        except TransferCorrupt as refused:
            error = refused
            self._stats = replace(self._stats, corrupt_blocks=self._stats.corrupt_blocks + 1)
        except Exception as ended:
            error = PeerLost(f"gloo receive: {ended}")
        moved = len(receives) if error is None else 0
        self._stats = replace(
            self._stats,
            moved_bytes=self._stats.moved_bytes + moved * self._memory.block_bytes,
            moved_blocks=self._stats.moved_blocks + moved,
            busy_s=self._stats.busy_s + time.perf_counter() - began,
        )
        if error is None:
            self._settle(post, None)
        else:
            self._fail(post, error)

    def _verify_block(self, transfer_id: int, receive: _Receive) -> None:
        move = receive.move
        expected = Descriptor(
            kind=FrameKind.BLOCK, nonce=self._pair.nonce, epoch=self._pair.epoch, transfer_id=transfer_id,
            index=move.index, tag=move.tag, source_block=move.source_block,
            source_generation=move.source_generation, length=self._memory.block_bytes,
        )  # fmt: skip
        self._link.finish(receive.described)
        actual = read_frame(receive.frame)
        expect(actual, expected)
        self._link.finish(receive.payload)  # arrived before its descriptor
        if payload_digest(self._memory.block(move.target_block)) != actual.digest:
            raise TransferCorrupt(f"block {move.index:,} of transfer {transfer_id:,} has another digest")
        if actual.flags & FLAG_ACK_WANTED:
            frame = frame_tensor(replace(actual, kind=FrameKind.ACK).pack())
            self._link.finish(self._link.send(frame, move.tag))  # its receive was posted before it was asked for
