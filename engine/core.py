"""One engine for both phases: a scheduler, a KV pool and something that computes steps. No torch here.

A command goes in, a step is run, a report comes out. Everything is owned by one thread; the mock engine and the real
one differ only in the runner.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from pdserve.clock import Clock
from pdserve.errors import InvariantViolation, ServingError
from pdserve.ids import SequenceKey
from scheduling.batching import Batch, Scheduler, SequenceUpdate
from scheduling.blocks import BlockCounts
from scheduling.sequence import Sequence
from scheduling.step import StepResult, StepRunner

log = logging.getLogger(__name__)

MAX_LOST_STEPS = 3


# ---- commands ----


@dataclass(frozen=True, slots=True)
class Submit:
    """Queue a sequence."""

    sequence: Sequence


@dataclass(frozen=True, slots=True)
class Commit:
    """The sequence's KV is verified in its reserved blocks; run it from this token on."""

    key: SequenceKey
    first_token_id: int


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Compute no more of it; keep its blocks, a transfer may still touch them."""

    key: SequenceKey


@dataclass(frozen=True, slots=True)
class Release:
    """End it and free its blocks: handed over, cancelled or failed. Safe to repeat."""

    key: SequenceKey


Command = Submit | Commit | Quarantine | Release


# ---- report ----


@dataclass(frozen=True, slots=True)
class Room:
    """A sequence that waits for KV from a peer has its blocks."""

    key: SequenceKey
    block_ids: tuple[int, ...]  # of the whole prompt
    skip: int  # the first ones hold the prompt's KV already (prefix cache)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A sequence that was not taken."""

    key: SequenceKey
    error: ServingError


@dataclass(frozen=True, slots=True)
class StepStats:
    """What one step was, for metrics and the latency model."""

    seconds: float
    prefill_tokens: int
    decode_sequences: int
    context_tokens: int  # sum over sequences of positions whose KV was read
    num_sequences: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """What the latency model is a function of."""
        return self.prefill_tokens, self.decode_sequences, self.context_tokens


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """State after the step."""

    blocks: BlockCounts
    leaked_blocks: int
    waiting: int
    running: int
    uncomputed_tokens: int
    promised_blocks: int


@dataclass(slots=True)
class Report:
    """Everything since the last report; one message to the event loop per step. Nobody writes it once it is posted."""

    updates: list[SequenceUpdate] = field(default_factory=list)
    room: list[Room] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    stats: StepStats | None = None
    load: EngineLoad | None = None  # now and then, and always before the engine rests


class EngineCore:
    """Commands, steps, reports. Not thread-safe: one thread owns it."""

    def __init__(self, scheduler: Scheduler, runner: StepRunner, clock: Clock) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.clock = clock
        self._lost_steps = 0

    def apply(self, command: Command, report: Report) -> None:
        """Carry out one command; what comes of it is added to `report`."""
        match command:
            case Submit(sequence):
                try:
                    self.scheduler.add(sequence)
                except ServingError as error:
                    report.rejected.append(Rejected(sequence.key, error))
            case Commit(key, first_token_id):
                # None: the sequence ended meanwhile and says so itself; its KV is discarded with its blocks.
                report.updates += self.scheduler.try_commit(key, first_token_id) or []
            case Quarantine(key):
                self.scheduler.quarantine(key)
            case Release(key):
                self.scheduler.abort(key)

    def step(self, report: Report) -> bool:
        """End what is out of time, make room, run one step if there is anything to run; whether anything happened."""
        expired = self.scheduler.expire()
        report.updates += expired
        batch = self.scheduler.schedule()
        self._tell_room(batch, report)
        if batch.steps:
            start = self.clock.now()
            results = self._execute(batch)
            self._tell_stats(batch, self.clock.now() - start, report)
            report.updates += self.scheduler.complete(batch, results)
        return bool(expired or batch.reserved or batch.steps)

    def close(self) -> None:
        """Called last, on the same thread: nothing is computed any more when it returns."""

    def idle_s(self, most_s: float) -> float:
        """How long to wait for commands, `most_s` at most, before a step has something to do again: to a deadline."""
        return max(0.0, min(most_s, self.scheduler.next_deadline_s - self.clock.now()))

    def load(self) -> EngineLoad:
        """State now. Cost: O(live)."""
        scheduler = self.scheduler
        return EngineLoad(
            scheduler.block_counts(), scheduler.leaked_blocks(), scheduler.num_waiting, scheduler.num_running,
            scheduler.uncomputed_tokens, scheduler.promised_blocks,
        )  # fmt: skip

    def _tell_room(self, batch: Batch, report: Report) -> None:
        for sequence in batch.reserved:
            num_blocks = self.scheduler.blocks.blocks_for(sequence.num_initial_tokens)
            room = Room(sequence.key, tuple(sequence.block_ids[:num_blocks]), sequence.num_cached_blocks)
            report.room.append(room)

    def _tell_stats(self, batch: Batch, seconds: float, report: Report) -> None:
        counts = (batch.prefill_tokens, batch.decode_sequences, batch.context_tokens)
        report.stats = StepStats(seconds, *counts, num_sequences=len(batch.steps))

    def _execute(self, batch: Batch) -> Seq[StepResult]:
        try:
            results = self.runner.execute(batch.steps)
        except Exception as caught:
            return self._lose(batch, caught)
        self._lost_steps = 0
        return results

    def _lose(self, batch: Batch, caught: Exception) -> list[StepResult]:
        """A step that raises is lost: its sequences fail, the engine goes on, unless it happens again and again."""
        self._lost_steps += 1
        log.error("step of %d sequences lost", len(batch.steps), exc_info=caught)
        if self._lost_steps >= MAX_LOST_STEPS:
            raise caught
        error = InvariantViolation(f"the step failed: {type(caught).__name__}")
        return [error for _ in batch.steps]
