"""What goes into the next step; the rules are drawn at the top of `batching.py`."""

from __future__ import annotations

from pdserve.clock import Clock
from pdserve.ids import SequenceKey
from scheduling.batch import Batch, SchedulerConfig
from scheduling.prefix import extend_hashes
from scheduling.sequence import Sequence, SequenceState
from scheduling.sequence_table import SequenceTable
from scheduling.step import SequenceStep


class BatchFormer:
    """Decodes, chunks, admissions; moves sequences between WAITING, RUNNING and RESERVED."""

    def __init__(self, config: SchedulerConfig, table: SequenceTable, clock: Clock) -> None:
        self._config = config
        self._table = table
        self._pool = table.pool
        self._clock = clock
        self._watermark_blocks = config.watermark_blocks(table.pool.num_blocks)
        self._refused: tuple[Sequence, int, int, int, int] | None = None  # who found no room, in what circumstances
        self._must_wait = False  # for the step in flight: it writes blocks that are to be taken

    def form(self, running: list[Sequence]) -> tuple[Batch, list[Sequence]]:
        """The batch, and the sequence of each of its steps. `running`: those that have something to compute.

        With a step in flight the batch is empty where a sequence of that step would have to be preempted: once it is
        complete, more is known, and the blocks are safe to give away.

        Cost: O(running), and O(blocks of the prompt) per admission.
        """
        now_s = self._clock.now()
        stepped, prompts, preempted = self._decodes(running)
        if self._must_wait:
            self._must_wait = False
            return Batch((), (), tuple(preempted)), []
        steps = [_decode_step(seq, now_s) for seq in stepped]
        num_decodes = len(steps)
        budget = self._config.max_num_batched_tokens - num_decodes
        if steps and self._config.mixed_prefill_tokens is not None:
            budget = min(budget, self._config.mixed_prefill_tokens)
        for seq in prompts:
            if budget == 0:
                break
            budget = self._add_chunk(seq, budget, now_s, steps, stepped)
        reserved: list[Sequence] = []
        while not preempted:  # blocks are short: whoever was preempted would come straight back
            admitted = self._admit(budget)
            if admitted is None:
                break
            if admitted.state is SequenceState.RESERVED:
                reserved.append(admitted)
            else:
                budget = self._add_chunk(admitted, budget, now_s, steps, stepped)
        context_tokens = sum(step.start for step in steps) + num_decodes
        prefill_tokens = sum(len(step.token_ids) for step in steps[num_decodes:])
        counts = (prefill_tokens, num_decodes, context_tokens + prefill_tokens)
        return Batch(tuple(steps), tuple(reserved), tuple(preempted), *counts), stepped

    def _decodes(self, running: list[Sequence]) -> tuple[list[Sequence], list[Sequence], list[SequenceKey]]:
        """Running sequences with one token to compute and a slot for it; those with more; whom that preempted."""
        decodes: list[Sequence] = []
        prompts: list[Sequence] = []
        preempted: list[SequenceKey] = []
        size = self._pool.block_size
        for seq in running:
            if preempted and seq.state is not SequenceState.RUNNING:
                continue  # preempted a moment ago
            num_tokens = len(seq.token_ids)
            if num_tokens - seq.num_computed_tokens > 1:
                prompts.append(seq)
            elif num_tokens <= len(seq.block_ids) * size or self._grow(seq, preempted):
                decodes.append(seq)
        if preempted:
            decodes = [seq for seq in decodes if seq.state is SequenceState.RUNNING]
            prompts = [seq for seq in prompts if seq.state is SequenceState.RUNNING]
        return decodes, prompts, preempted

    def _grow(self, seq: Sequence, preempted: list[SequenceKey]) -> bool:
        """Give a sequence one more block, preempting from the youngest on; False: all that could go came before it."""
        while self._pool.num_free == 0:
            victim = max((s for s in self._table.running if s.may_grow), key=lambda s: s.rank)
            if victim is seq:
                return False
            if victim.in_step:
                self._must_wait = True
                return False
            self._table.move(victim, SequenceState.WAITING)
            preempted.append(victim.key)
        seq.block_ids += self._pool.allocate(1)
        return True

    def _admit(self, budget: int) -> Sequence | None:
        """Seat the queue's head, if it has a seat, blocks, and (unless its KV comes from a peer) a token of budget."""
        seq = self._table.waiting.head
        if seq is None or self._table.num_seats >= self._config.max_num_seqs:
            return None
        if budget == 0 and not seq.awaits_kv:
            return None
        block_ids = self._try_place(seq)
        if block_ids is None:
            return None
        num_matched = len(block_ids)
        block_ids += self._pool.allocate(self._blocks_wanted(seq) - num_matched)
        seq.block_ids = block_ids
        self._table.move(seq, SequenceState.RESERVED if seq.awaits_kv else SequenceState.RUNNING)
        seq.num_computed_tokens = num_matched * self._pool.block_size
        seq.num_published_blocks = seq.num_cached_blocks = num_matched
        if seq.first_step_s is None and seq.committed_s is None:
            seq.cached_tokens = seq.num_computed_tokens
        return seq

    def _blocks_wanted(self, seq: Sequence) -> int:
        return self._pool.blocks_for(len(seq.token_ids) + seq.awaits_kv)

    def _try_place(self, seq: Sequence) -> list[int] | None:
        """The cached blocks of its prefix, referenced, if the rest of its blocks are free too; else nothing changes."""
        pool = self._pool
        spare = self._watermark_blocks if self._table.num_growing else 0
        circumstances = (seq, pool.num_free, pool.num_published, pool.num_matched, spare)
        if circumstances == self._refused:
            return None  # the same answer as last time
        wanted = self._blocks_wanted(seq) + spare
        matched = idle = 0
        if pool.prefix_caching:
            # Someone must compute the last token here, to sample from it; with a handoff the peer did.
            usable = (len(seq.token_ids) - (not seq.awaits_kv)) // pool.block_size
            if wanted - usable <= pool.num_free:
                extend_hashes(seq.hashes, seq.token_ids, pool.block_size, seq.salt)
                matched, idle = pool.count_prefix(seq.hashes[:usable])
        if wanted - matched > pool.num_free - idle:
            self._refused = circumstances
            return None
        return pool.match_prefix(seq.hashes[:matched])

    def _add_chunk(
        self, seq: Sequence, budget: int, now_s: float, steps: list[SequenceStep], stepped: list[Sequence]
    ) -> int:
        """Add as much of a prompt as the budget allows; returns the budget left."""
        num_tokens = min(seq.num_uncomputed_tokens, budget)
        steps.append(_step(seq, num_tokens, now_s))
        stepped.append(seq)
        return budget - num_tokens


def _decode_step(seq: Sequence, now_s: float) -> SequenceStep:
    """`_step` for one token, where nearly all the time goes."""
    if seq.first_step_s is None:
        seq.first_step_s = now_s
    seq.in_step += 1
    step, token_ids = seq.step, seq.token_ids
    step.token_ids = token_ids[-1:]
    step.start = len(token_ids) - 1
    step.sample = seq.sample_request
    return step


def _step(seq: Sequence, num_tokens: int, now_s: float) -> SequenceStep:
    if seq.first_step_s is None:
        seq.first_step_s = now_s
    seq.in_step += 1
    step, start = seq.step, seq.num_computed_tokens
    end = start + num_tokens
    step.token_ids = seq.token_ids[start:end]
    step.start = start
    step.sample = seq.sample_request if end == len(seq.token_ids) else None
    return step
