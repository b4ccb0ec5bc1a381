"""One worker: the real scheduler and block ledger; steps that take their predicted time."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pdserve.ids import SequenceKey
from pdserve.sampling import SampledToken
from placement.simulator.cluster import Delays, Jitter, Warming, WorkerSpec
from placement.simulator.events import EventQueue
from placement.simulator.machine import Job, Machine
from scheduling.batching import Batch, Scheduler, SequenceUpdate
from scheduling.blocks import BlockPool
from scheduling.latency import LatencyCoefficients, OnlineLatencyEstimator
from scheduling.ledger import ReportedLoad
from scheduling.sequence import Sequence as EngineSequence

TOKEN_ID = 1 << 62  # in no prompt: what is generated is nobody's prefix, but of whom had the same prompt
_SAMPLED = SampledToken(TOKEN_ID)


class WorkerListener(Protocol):
    """Who hears of a worker, at the instant of its engine; delays are the listener's."""

    def on_room(self, worker: SimWorker, key: SequenceKey, block_ids: tuple[int, ...], skip: int) -> None: ...

    def on_updates(self, worker: SimWorker, updates: Sequence[SequenceUpdate]) -> None: ...


@dataclass(slots=True)
class WorkerCounts:
    """What a worker has done."""

    steps: int = 0
    busy_s: float = 0.0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    peak_blocks: int = 0


class SimWorker:
    """One boot of one worker. Commands take effect between steps, as on the engine's thread."""

    def __init__(
        self,
        spec: WorkerSpec,
        events: EventQueue,
        delays: Delays,
        listener: WorkerListener,
        counts: WorkerCounts,
        machine: Machine | None = None,
        warming: Warming | None = None,
        jitter: Jitter | None = None,
    ) -> None:
        """Without `machine` its steps take what they take alone."""
        self.spec = spec
        self.alive = True
        self.counts = counts
        self.estimator = OnlineLatencyEstimator(spec.prior)
        pool = BlockPool(spec.num_blocks, spec.block_size, prefix_caching=spec.prefix_caching)
        self.scheduler = Scheduler(spec.scheduler, pool, events)
        self._events = events
        self._delays = delays
        self._listener = listener
        self._machine = machine
        self._warming = warming
        self._jitter = jitter
        self._number = zlib.crc32(spec.worker_id.encode())
        self._decodes_in_a_row = 0
        self._rested = True
        self._job: Job | None = None
        self._commands: list[Callable[[], object]] = []
        self._stepping = False
        self._wake_planned = False
        self._deadline_s = math.inf  # a turn is planned for this deadline

    def put(self, command: Callable[[], object]) -> None:
        """Have `command` carried out before the next step; at once when the engine is idle."""
        if not self.alive:
            return
        self._commands.append(command)
        if not self._stepping and not self._wake_planned:
            self._wake_planned = True
            self._events.after(self._delays.wake_s, self._turn)

    def submit(self, seq: EngineSequence) -> None:
        """A command: queue a sequence. Errors: as `Scheduler.add`."""
        self.scheduler.add(seq)

    def commit(self, key: SequenceKey, token_id: int) -> None:
        """A command: the KV is here."""
        updates = self.scheduler.try_commit(key, token_id)
        if updates:
            self._listener.on_updates(self, updates)

    def reported(self) -> tuple[ReportedLoad, LatencyCoefficients]:
        """What its status says."""
        counts = self.scheduler.block_counts()
        load = ReportedLoad(
            counts.free + counts.cached, self.scheduler.promised_blocks, self.scheduler.uncomputed_tokens
        )
        return load, self.estimator.coefficients()

    def die(self) -> None:
        """Nothing of it happens any more."""
        self.alive = False
        self._commands.clear()
        if self._machine is not None and self._job is not None:
            self._machine.drop(self._job)

    def _turn(self) -> None:
        """Commands, then a step if there is anything to run."""
        self._wake_planned = False
        if not self.alive or self._stepping:
            return
        while self._commands:
            commands, self._commands = self._commands, []
            for command in commands:
                command()
        scheduler = self.scheduler
        if expired := scheduler.expire():
            self._listener.on_updates(self, expired)
        batch = scheduler.schedule()
        for seq in batch.reserved:
            num_blocks = scheduler.blocks.blocks_for(seq.num_initial_tokens)
            self._listener.on_room(self, seq.key, tuple(seq.block_ids[:num_blocks]), seq.num_cached_blocks)
        if batch.steps:
            self._begin(batch)
            return
        self._decodes_in_a_row, self._rested = 0, True
        if scheduler.next_deadline_s < self._deadline_s:
            self._deadline_s = scheduler.next_deadline_s
            self._events.at(self._deadline_s, self._on_deadline)

    def _on_deadline(self) -> None:
        self._deadline_s = math.inf
        self._turn()

    def _begin(self, batch: Batch) -> None:
        self._stepping = True
        prompts = batch.steps[batch.decode_sequences :]
        pairs = sum(len(step.token_ids) * (step.start + step.end + 1) for step in prompts) / 2
        seconds = self.spec.step_times.batch_s(
            batch.prefill_tokens, pairs, batch.decode_sequences, batch.context_tokens
        )
        seconds += self._warming_s(batch)
        if self._jitter is not None:
            seconds *= self._jitter.factor(self._number, batch.prefill_tokens > 0, self._events.now())
        rested, self._rested = self._rested, False
        counts = self.counts
        counts.prefill_tokens += batch.prefill_tokens
        counts.decode_tokens += batch.decode_sequences
        counts.peak_blocks = max(counts.peak_blocks, self.scheduler.blocks.num_referenced)
        if self._machine is not None:
            has_prompts = batch.prefill_tokens > 0
            self._job = self._machine.begin(
                seconds, has_prompts, lambda took_s: self._computed(batch, took_s), rested=rested
            )
            return
        self._count(batch, seconds)  # already: the compiled twin does, and a status may come before the end
        self._events.after(seconds, self._complete, batch)

    def _warming_s(self, batch: Batch) -> float:
        """What the step takes longer than in a long row of its kind."""
        if self._warming is None:
            return 0.0
        if batch.prefill_tokens:
            self._decodes_in_a_row = 0
            return 0.0
        self._decodes_in_a_row += 1
        return self._warming.extra_s(self._decodes_in_a_row - 1)

    def _computed(self, batch: Batch, took_s: float) -> None:
        self._count(batch, took_s)
        self._complete(batch)

    def _count(self, batch: Batch, seconds: float) -> None:
        self.estimator.observe(batch.prefill_tokens, batch.decode_sequences, batch.context_tokens, seconds)
        self.counts.steps += 1
        self.counts.busy_s += seconds

    def _complete(self, batch: Batch) -> None:
        if not self.alive:
            return
        self._stepping = False
        results = [None if step.sample is None else _SAMPLED for step in batch.steps]
        updates = self.scheduler.complete(batch, results)
        if updates:
            self._listener.on_updates(self, updates)
        if not self._wake_planned:
            self._wake_planned = True
            self._events.after(self._delays.step_s, self._turn)
