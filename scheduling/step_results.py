"""What a computed step changes: tokens, KV counted as computed, blocks published, sequences ended."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from pdserve.clock import Clock
from pdserve.errors import InvariantViolation, NoFreeBlocks, ServingError
from pdserve.sampling import FinishReason, SampledToken
from scheduling.batch import FirstTokenTiming, ReadyBlocks, SequenceUpdate
from scheduling.prefix import extend_hashes
from scheduling.sequence import Sequence, SequenceMode, SequenceState
from scheduling.sequence_table import SequenceTable
from scheduling.step import SequenceStep, StepResult

S = SequenceState
_ON, _STOP, _LENGTH = (None, None), (FinishReason.STOP, None), (FinishReason.LENGTH, None)


class ResultBook:
    """Enters what came, from a step or from a peer, into the sequences and the pool."""

    def __init__(self, table: SequenceTable, clock: Clock) -> None:
        self._table = table
        self._pool = table.pool
        self._clock = clock
        self._capacity_tokens = self._pool.num_blocks * self._pool.block_size

    def enter_commit(self, seq: Sequence, first_token_id: int) -> list[SequenceUpdate]:
        """The KV of all that a RESERVED sequence knows is here, and this token came with it: it runs."""
        seq.committed_s = self._clock.now()
        self._table.move(seq, S.RUNNING)
        seq.num_computed_tokens = len(seq.token_ids)
        seq.num_given_tokens += 1
        self._publish(seq)
        finish_reason, error = self._append(seq, first_token_id)
        return [self.end(seq, finish_reason, error)] if finish_reason or error else []

    def enter_results(
        self, stepped: list[Sequence], steps: Seq[SequenceStep], results: Seq[StepResult], now_s: float
    ) -> list[SequenceUpdate]:
        """A step is computed: what became of its sequences. Those that ended meanwhile get no update."""
        size, capacity_tokens, running = self._pool.block_size, self._capacity_tokens, S.RUNNING
        updates = []
        for seq, step, result in zip(stepped, steps, results, strict=True):
            seq.in_step -= 1
            if seq.state is not running:
                if seq.state is S.DRAINING and not seq.in_step:
                    self._table.move(seq, S.FINISHED)
                continue
            token_ids = seq.token_ids
            num_tokens = len(token_ids)
            if (
                isinstance(result, SampledToken)
                and step.sample is not None
                and num_tokens > seq.num_given_tokens  # its first token here brings times, and may end a prefill
                and num_tokens // size == seq.num_published_blocks
                and (token_id := result.token_id) not in seq.end_token_ids
                and num_tokens + 1 < seq.max_total_tokens
                and num_tokens < capacity_tokens
            ):  # nearly always; `_enter_result` comes to the same
                seq.num_computed_tokens = num_tokens
                token_ids.append(token_id)
                updates.append(SequenceUpdate(seq.key, num_tokens - seq.num_prompt_tokens, result))
            elif (update := self._enter_result(seq, step, result, now_s)) is not None:
                updates.append(update)
        return updates

    def _enter_result(
        self, seq: Sequence, step: SequenceStep, result: StepResult, now_s: float
    ) -> SequenceUpdate | None:
        """One sequence's share of a step is computed; None if nobody needs to hear of it."""
        if isinstance(result, ServingError):
            return self._fail(seq, result)
        if (result is None) is not (step.sample is None):
            return self._fail(seq, InvariantViolation("the step runner sampled where it should not, or the reverse"))
        seq.num_computed_tokens = num_computed = step.start + len(step.token_ids)
        if num_computed // self._pool.block_size > seq.num_published_blocks:
            self._publish(seq)
        if result is None:
            ready = self._ready_blocks(seq, num_computed // self._pool.block_size)
            waited_s = self._started_after_s(seq, step)
            if ready is None and waited_s is None:
                return None
            return SequenceUpdate(seq.key, ready_blocks=ready, started_after_s=waited_s)
        index = num_computed - seq.num_prompt_tokens
        timing = self._first_token_timing(seq, now_s) if num_computed == seq.num_given_tokens else None
        finish_reason, error = self._append(seq, result.token_id)
        if finish_reason is not None or error is not None:
            return self.end(seq, finish_reason, error, index, result, timing)
        if seq.mode is not SequenceMode.PREFILL:
            return SequenceUpdate(seq.key, index, result, None, None, None, timing)
        ready = self._ready_blocks(seq, len(seq.block_ids))
        self._table.move(seq, S.HELD)
        return SequenceUpdate(seq.key, index, result, ready_blocks=ready, first_token_timing=timing)

    def _append(self, seq: Sequence, token_id: int) -> tuple[FinishReason | None, ServingError | None]:
        """Add an output token; whether and why that ends the sequence."""
        token_ids = seq.token_ids
        index = len(token_ids) - seq.num_prompt_tokens
        token_ids.append(token_id)
        if token_id in seq.end_token_ids and index >= seq.sampling.min_tokens:
            return _STOP
        if len(token_ids) >= seq.max_total_tokens:
            return _LENGTH
        if len(token_ids) > self._capacity_tokens and seq.may_grow:
            most = self._capacity_tokens
            return None, NoFreeBlocks(f"sequence has {len(token_ids):,} tokens, the KV pool holds {most:,} in all")
        return _ON

    def _publish(self, seq: Sequence) -> None:
        """Offer the blocks that have become full to the prefix cache; their KV is computed."""
        full = seq.num_computed_tokens // self._pool.block_size
        if self._pool.prefix_caching:
            extend_hashes(seq.hashes, seq.token_ids, self._pool.block_size, seq.salt)
            for index in range(seq.num_published_blocks, full):
                self._pool.publish(seq.block_ids[index], seq.hashes[index])
        seq.num_published_blocks = full

    def _ready_blocks(self, seq: Sequence, end: int) -> ReadyBlocks | None:
        """PREFILL: the blocks before `end` that no update has told of."""
        first = seq.num_ready_blocks
        if seq.mode is not SequenceMode.PREFILL or end == first:
            return None
        seq.num_ready_blocks = end
        block_ids = tuple(seq.block_ids[first:end])
        return ReadyBlocks(first, block_ids, tuple(self._pool.generations[block_id] for block_id in block_ids))

    def _started_after_s(self, seq: Sequence, step: SequenceStep) -> float | None:
        """How long a prompt waited, with the first of its several steps; None with the others."""
        if seq.first_step_s is None or step.start != seq.cached_tokens:
            return None
        return seq.first_step_s - seq.arrival_s

    def _first_token_timing(self, seq: Sequence, now_s: float) -> FirstTokenTiming:
        assert seq.first_step_s is not None
        begin_s = seq.arrival_s if seq.committed_s is None else seq.committed_s
        return FirstTokenTiming(seq.first_step_s - begin_s, now_s - seq.first_step_s, seq.cached_tokens)

    def _fail(self, seq: Sequence, error: ServingError) -> SequenceUpdate:
        """End a sequence whose numbers went wrong: none of its blocks may serve another."""
        self._pool.forget(seq.block_ids)
        return self.end(seq, None, error)

    def end(
        self,
        seq: Sequence,
        finish_reason: FinishReason | None,
        error: ServingError | None,
        output_index: int | None = None,
        token: SampledToken | None = None,
        timing: FirstTokenTiming | None = None,
    ) -> SequenceUpdate:
        """End a sequence, and say so: its last update."""
        holds_blocks = self._table.retire(seq)
        return SequenceUpdate(
            seq.key, output_index, token, finish_reason, error, first_token_timing=timing, holds_blocks=holds_blocks
        )
