"""What both ends of a gloo pair do alike: one thread keeps the frames of all jobs under way.

    jobs ──> frames ──begin──> under way, at most WINDOW_FRAMES ──finish──> the job's receipt

Frames are begun and finished in the order of the jobs, so both ends must be given them in the same order: credits are.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch.distributed import Work

from kv_transfer.frame import Descriptor
from kv_transfer.transports.background import Closing, Flag, JobQueue, start_thread
from kv_transfer.transports.framing import Frame, cut_frames
from kv_transfer.transports.gloo_link import GlooLink, frame_tensor
from kv_transfer.transports.interface import BlockMove, ChannelStats, PairInfo, Receipt
from pdserve.errors import PeerLost, QueueFull, ServingError

WINDOW_FRAMES = 64
"""Under way at most: beyond it operations only wait. All are begun before any is waited for, because gloo's network
thread holds the pair's lock for as long as bytes keep coming."""
MAX_JOBS = 1024
"""Calls of send() or post() outstanding on one pair."""


@dataclass(frozen=True, slots=True)
class Job:
    """One send() or post()."""

    transfer_id: int
    moves: tuple[BlockMove, ...]
    receipt: Receipt
    began_s: float


@dataclass(slots=True, eq=False)
class Flight:
    """A frame under way, and all that gloo reads or writes for it: kept until it is finished or the link shut down."""

    job: Job
    frame: Frame
    is_last: bool  # of its job
    expected: Descriptor  # the peer's small message must say
    heard: torch.Tensor = field(default_factory=frame_tensor)  # that message
    hearing: Work | None = None
    told: torch.Tensor | None = None  # our small message
    works: list[Work] = field(default_factory=list)  # of the payload, and our small message


class Pipeline:
    """The thread, its queue and its end. `begin` and `finish` run on the thread; what they raise ends the pair."""

    def __init__(
        self,
        name: str,
        pair: PairInfo,
        link: GlooLink,
        begin: Callable[[Flight], None],
        finish: Callable[[Flight], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._pair = pair
        self._link = link
        self._begin = begin
        self._finish = finish
        self.moved = ChannelStats()
        self._idle_s = time.perf_counter()  # since when nothing was under way
        self._outstanding = 0  # owned by the loop
        self._lost = Flag(self._loop)
        self._queue: JobQueue[Job] = JobQueue(MAX_JOBS)
        self._taken: deque[Job] = deque()  # not yet finished
        self._flights: deque[Flight] = deque()
        self._at_fault: Job | None = None  # whose frame the thread is at
        self._closing = Closing(f"{name}-close", self._close)
        link.start(self._lost.raise_)
        self._thread = start_thread(name, self._run)

    def submit(self, transfer_id: int, moves: tuple[BlockMove, ...]) -> Receipt:
        """Queue a job. PeerLost when the pair is over, QueueFull when too many are outstanding. Does not block."""
        self.check_open()
        if self._outstanding >= MAX_JOBS:
            raise QueueFull(f"{MAX_JOBS:,} transfers wait on one pair")
        receipt = Receipt(self._loop)
        self._queue.submit(Job(transfer_id, moves, receipt, time.perf_counter()))
        self._outstanding += 1
        receipt.when_settled(self._settled)
        return receipt

    def check_open(self) -> None:
        """PeerLost when the pair is over."""
        if self._lost.is_raised or self._closing.has_begun:
            raise PeerLost("the pair is closed")

    async def wait_lost(self) -> None:
        await self._lost.wait()

    async def close(self) -> None:
        await self._closing.run()

    def _settled(self) -> None:
        self._outstanding -= 1

    def _close(self) -> None:
        self._lost.raise_()
        self._link.shutdown()
        self._abandon(self._queue.stop())
        self._thread.join()
        self._link.close()

    def _abandon(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.receipt.settle(PeerLost("the pair was closed"))

    def _run(self) -> None:
        try:
            self._keep_going()
        except Exception as ended:
            # Shut down first, so that nothing is read or written once a receipt is settled.
            self._link.shutdown()
            self._lost.raise_()
            # gloo raises RuntimeError for everything
            error = ended if isinstance(ended, ServingError) else PeerLost(f"gloo: {ended}")
            if self._at_fault is not None:
                self._at_fault.receipt.settle(error)
            self._abandon([*self._taken, *self._queue.stop()])
        self._flights.clear()

    def _keep_going(self) -> None:
        """Until the queue is stopped and nothing is under way."""
        frames: Iterator[Flight] = iter(())
        while True:
            while len(self._flights) < WINDOW_FRAMES:
                flight = next(frames, None)
                if flight is not None:
                    self._at_fault = flight.job
                    self._flights.append(flight)
                    self._begin(flight)
                    continue
                job = self._queue.take(wait=not self._flights)
                if job is None:
                    break
                self._taken.append(job)
                self._at_fault = job
                frames = self._cut(job)
            if not self._flights:
                return
            self._at_fault = self._flights[0].job
            self._finish(self._flights[0])
            self._finished(self._flights.popleft())

    def _cut(self, job: Job) -> Iterator[Flight]:
        left = len(job.moves)
        for frame in cut_frames(job.moves, self._pair.block_bytes):
            left -= len(frame)
            yield Flight(job, frame, not left, frame.describe(self._pair, job.transfer_id))

    def _finished(self, flight: Flight) -> None:
        if not flight.is_last:
            return
        job, now = self._taken.popleft(), time.perf_counter()
        assert job is flight.job
        self.moved = ChannelStats(
            self.moved.moved_bytes + len(job.moves) * self._pair.block_bytes,
            self.moved.moved_blocks + len(job.moves),
            self.moved.busy_s + now - max(job.began_s, self._idle_s),
        )
        self._idle_s = now
        job.receipt.settle(None)
