"""Which sequences are computed in the next step: continuous batching with chunked prompts over a paged KV pool.

A step, in this order, under the token budget:

    1. decode      every running sequence with one token to compute: nobody's stream stalls for a prompt
    2. chunks      prompts that are partly computed, in order of admission
    3. admissions  from the queue's head, never past it; a DECODE sequence only gets its blocks (RESERVED)

A sequence gets blocks for all the tokens it has when it is admitted. One block at a time comes later, for the tokens
generated; when none is free, the running sequence that came last is preempted: its blocks are freed and it is computed
again from the queue. A sequence preempts only those that came after it, and else waits where it is, so the oldest
always moves on. PREFILL sequences (their blocks may be on the wire), RESERVED, HELD and QUARANTINED ones are never
preempted.

One batch is in flight at a time, or two (flight.py): schedule, execute, complete. Every other call may come in between.

Sources: Orca (Yu et al., OSDI 2022), continuous batching; Sarathi-Serve (Agrawal et al., OSDI 2024), stall-free chunks;
PagedAttention (Kwon et al., SOSP 2023), preemption by recomputation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq

from pdserve.clock import Clock
from pdserve.errors import (
    AlreadyExists,
    BadSampling,
    DeadlineExceeded,
    InvariantViolation,
    PromptTooLong,
    QueueFull,
    RequestError,
)
from pdserve.ids import SequenceKey
from scheduling.batch import Batch, FirstTokenTiming, ReadyBlocks, SchedulerConfig, SequenceUpdate
from scheduling.batch_forming import BatchFormer
from scheduling.blocks import BlockCounts, BlockPool
from scheduling.flight import Flights
from scheduling.sequence import Sequence, SequenceMode, SequenceState
from scheduling.sequence_table import SequenceTable
from scheduling.step import StepResult
from scheduling.step_results import ResultBook

__all__ = ["Batch", "FirstTokenTiming", "ReadyBlocks", "Scheduler", "SchedulerConfig", "SequenceUpdate"]

S = SequenceState


class Scheduler:
    """The life of every sequence on one engine, from `add` to its end; owned by one thread."""

    def __init__(self, config: SchedulerConfig, blocks: BlockPool, clock: Clock) -> None:
        self.config = config
        self.blocks = blocks
        self.stale_calls = 0  # calls for sequences unknown or in another state: late or repeated, without effect
        self.num_preemptions = 0
        self._clock = clock
        self._table = SequenceTable(blocks)
        self._former = BatchFormer(config, self._table, clock)
        self._results = ResultBook(self._table, clock)
        self._flights = Flights(self._table)
        self._next_deadline_s = math.inf  # no live sequence has an earlier one

    # ---- calls from outside, at any time ----

    def add(self, seq: Sequence) -> None:
        """Queue a sequence.

        Raises QueueFull; PromptTooLong if it can never be served here; AlreadyExists if its key is live;
        RequestError if there is nothing to compute or to generate. Then nothing has changed.
        """
        self._validate(seq)
        if len(self._table.waiting) >= self.config.max_queued_sequences:
            raise QueueFull(f"{len(self._table.waiting):,} sequences wait, limit {self.config.max_queued_sequences:,}")
        seq.max_total_tokens = min(seq.max_total_tokens, self.config.max_model_len)
        self._table.add(seq)
        self._next_deadline_s = min(self._next_deadline_s, seq.deadline_s)

    def try_commit(self, key: SequenceKey, first_token_id: int) -> list[SequenceUpdate] | None:
        """DECODE: the KV of all known tokens is here and verified, and the peer sampled `first_token_id` after them.

        The sequence runs from now on. Its update, if that token ends it: without the token, which the peer delivered.
        None when the key is stale (unknown, ended, or not RESERVED): the KV must be discarded.
        """
        seq = self._known(key, S.RESERVED)
        if seq is None:
            return None
        return self._results.enter_commit(seq, first_token_id)

    def release(self, key: SequenceKey) -> bool:
        """PREFILL: the peer has read everything; the blocks are freed. False when that was done before."""
        seq = self._known(key, S.HELD, S.QUARANTINED)
        if seq is None:
            return False
        if seq.mode is not SequenceMode.PREFILL:
            self.stale_calls += 1
            return False
        self._table.drop(seq)
        return True

    def quarantine(self, key: SequenceKey) -> bool:
        """End a sequence that owns blocks and keep them, until `abort`: a transfer may touch them. Safe to repeat."""
        seq = self._known(key, S.RUNNING, S.RESERVED, S.HELD, S.QUARANTINED)
        if seq is None:
            return False
        if seq.state is not S.QUARANTINED:
            self._table.move(seq, S.QUARANTINED)
        return True

    def abort(self, key: SequenceKey) -> bool:
        """End a sequence, whatever its state, and free its blocks; the caller vouches that no transfer touches them.

        A step in flight may: then they are freed when it is complete. False when it had ended before.
        """
        seq = self._known(key, S.WAITING, S.RUNNING, S.RESERVED, S.HELD, S.QUARANTINED)
        if seq is None:
            return False
        self._table.drop(seq)
        return True

    def expire(self) -> list[SequenceUpdate]:
        """End every sequence whose deadline has passed. Cost: O(1) until the next deadline, then O(live)."""
        now_s = self._clock.now()
        if now_s < self._next_deadline_s:
            return []
        live = [seq for seq in self._table if seq.state not in (S.QUARANTINED, S.DRAINING)]
        late = [seq for seq in live if seq.deadline_s <= now_s]
        self._next_deadline_s = min((seq.deadline_s for seq in live if seq.deadline_s > now_s), default=math.inf)
        message = "the deadline passed while the sequence was"
        return [self._results.end(seq, None, DeadlineExceeded(f"{message} {seq.state.value}")) for seq in late]

    # ---- the step ----

    def schedule(self) -> Batch:
        """The next step; `complete` must follow if it has any steps. Cost: O(running) + O(blocks admitted)."""
        if self._flights:
            raise InvariantViolation("schedule() while a batch is in flight")
        return self._form(list(self._table.running))

    def schedule_ahead(self) -> Batch:
        """The step after the one in flight, once for each; PENDING stands for tokens that are not known yet."""
        return self._form(self._flights.presume())

    def complete(self, batch: Batch, results: Seq[StepResult]) -> list[SequenceUpdate]:
        """The oldest step has been computed: what became of its sequences. Those that ended meanwhile get no update.

        A step that was lost as a whole is completed with one error per sequence.
        """
        if not batch.steps and not results:
            return []
        flight = self._flights.take(batch, results)
        return self._results.enter_results(flight.stepped, flight.steps, results, self._clock.now())

    # ---- views ----

    def get(self, key: SequenceKey) -> Sequence | None:
        """A live sequence, to read; None once it is finished."""
        return self._table.get(key)

    def live_keys(self) -> list[SequenceKey]:
        """Of every sequence that is not finished."""
        return [seq.key for seq in self._table]

    @property
    def next_deadline_s(self) -> float:
        """`expire` has nothing to do before this, on the scheduler's clock; inf: no deadline."""
        return self._next_deadline_s

    @property
    def num_running(self) -> int:
        """Sequences that are stepped."""
        return len(self._table.running)

    @property
    def num_waiting(self) -> int:
        """Sequences queued."""
        return len(self._table.waiting)

    @property
    def num_reserved(self) -> int:
        """DECODE sequences that have room and await their KV."""
        return self._table.num_reserved

    @property
    def has_work(self) -> bool:
        """Something waits or runs; `schedule` may still give no steps when only outside events can make room."""
        return bool(self._table.running) or len(self._table.waiting) > 0

    @property
    def uncomputed_tokens(self) -> int:
        """Prompt tokens to compute here, queued and running. Cost: O(running)."""
        running = (seq.num_uncomputed_tokens for seq in self._table.running)
        return self._table.waiting.uncomputed_tokens + sum(n for n in running if n > 1)

    @property
    def promised_blocks(self) -> int:
        """Blocks that running and reserved sequences will still want if each reaches its limit. Cost: O(live)."""
        return sum(
            max(0, self.blocks.blocks_for(seq.max_total_tokens - 1) - len(seq.block_ids))  # the last needs no slot
            for seq in self._table
            if seq.may_grow and seq.state in (S.RUNNING, S.RESERVED)
        )

    def block_counts(self) -> BlockCounts:
        """Blocks by state; leased: those of HELD sequences."""
        return self.blocks.counts()

    def leaked_blocks(self) -> int:
        """Block references that no sequence accounts for: 0, or we have a bug. Cost: O(live)."""
        return self._table.leaked_blocks()

    def check(self) -> None:
        """InvariantViolation if any promise of the scheduler or its pool is broken. Cost: everything."""
        self._table.check()
        self._flights.check()
        if self._table.num_seats > self.config.max_num_seqs:
            raise InvariantViolation(f"{self._table.num_seats} seats taken of {self.config.max_num_seqs}")

    # ---- parts ----

    def _form(self, running: list[Sequence]) -> Batch:
        batch, stepped = self._former.form(running)
        self._flights.add(batch, stepped)
        self.num_preemptions += len(batch.preempted)
        return batch

    def _validate(self, seq: Sequence) -> None:
        num_tokens, limit = len(seq.token_ids), self.config.max_model_len
        if self._table.get(seq.key) is not None:
            raise AlreadyExists(f"request {seq.key.request_id!r}, attempt {seq.key.attempt}, is running")
        if seq.num_prompt_tokens < 1:
            raise RequestError("the prompt has no tokens", field="prompt")
        if num_tokens + 1 > limit:
            raise PromptTooLong(f"prompt has {num_tokens:,} tokens, limit {limit - 1:,}", field="prompt")
        if seq.num_output_tokens >= seq.sampling.max_tokens:
            given, most = seq.num_output_tokens, seq.sampling.max_tokens
            raise BadSampling(f"{given:,} output tokens given, max_tokens is {most:,}", field="max_tokens")
        wanted = self.blocks.blocks_for(num_tokens + seq.awaits_kv)
        if wanted > self.blocks.num_blocks:
            total = self.blocks.num_blocks
            raise PromptTooLong(f"prompt needs {wanted:,} KV blocks, the pool has {total:,}", field="prompt")

    def _known(self, key: SequenceKey, *states: SequenceState) -> Sequence | None:
        seq = self._table.get(key)
        if seq is None or seq.state not in states:
            self.stale_calls += 1
            return None
        return seq
