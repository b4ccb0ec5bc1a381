"""A world around one scheduler: a runner whose KV can be read, a peer, a client that knows every right token.

A KV slot holds the salt and the chain of tokens up to its position. Every step looks, before it is done, at every slot
it would read; so a block that was reused, shared or published too early shows up as the wrong prefix, whoever did it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pytest

from pdserve.clock import ManualClock
from pdserve.errors import DeadlineExceeded, InvariantViolation
from pdserve.ids import SequenceKey
from pdserve.sampling import FinishReason, SampledToken, SamplingParams
from scheduling.batching import Batch, Scheduler, SchedulerConfig, SequenceUpdate
from scheduling.blocks import BlockPool
from scheduling.sequence import Sequence, SequenceMode, SequenceState
from scheduling.step import PENDING, SampleRequest, SequenceStep, StepResult

VOCABULARY = 11
GARBAGE = ("garbage", -1)
Kv = tuple[str, int]


def chain_of(token_ids: Iterable[int]) -> int:
    chain = 17
    for token_id in token_ids:
        chain = hash((chain, token_id))
    return chain


def next_token(token_ids: Iterable[int]) -> int:
    """The model: what comes after these tokens."""
    return chain_of(token_ids) % VOCABULARY


def oracle(seq: Sequence, max_model_len: int) -> tuple[list[int], FinishReason]:
    """All output tokens of a sequence, from the first on, and why it ends."""
    tokens = list(seq.token_ids)
    ends = seq.sampling.stop_token_ids + seq.sampling.eos_token_ids
    while True:
        index = len(tokens) - seq.num_prompt_tokens
        tokens.append(next_token(tokens))
        if tokens[-1] in ends and index >= seq.sampling.min_tokens:
            return tokens[seq.num_prompt_tokens :], FinishReason.STOP
        if index + 1 == seq.sampling.max_tokens or len(tokens) == max_model_len:
            return tokens[seq.num_prompt_tokens :], FinishReason.LENGTH


class NeedsTokens:
    """A constraint that allows everything, and wants to see every token."""

    def allowed(self, token_ids: Iterable[int], num_prompt_tokens: int) -> bytes:
        raise AssertionError("the world's runner does not ask")


@dataclass
class Launch:
    """A step as the device was given it."""

    batch: Batch
    steps: list[SequenceStep]  # copies
    named: dict[int, int]  # every block in its tables -> the block's generation
    results: list[StepResult] | None = None  # computed


class World:
    """Drives one scheduler and looks at everything it does.

    The device computes launches in their order, at any time between `schedule` and `complete`.
    """

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 32,
        max_model_len: int = 64,
        max_queued_sequences: int = 64,
        watermark: float = 0.0,
        mixed_prefill_tokens: int | None = None,
        prefix_caching: bool = True,
        ahead: bool = False,
    ) -> None:
        self.ahead = ahead  # `step` and `settle` launch each step before they complete the one before
        self.clock = ManualClock()
        self.pool = BlockPool(num_blocks, block_size, prefix_caching=prefix_caching)
        self.config = SchedulerConfig(
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_queued_sequences=max_queued_sequences,
            watermark=watermark,
            mixed_prefill_tokens=mixed_prefill_tokens,
        )
        self.scheduler = Scheduler(self.config, self.pool, self.clock)
        self.kv: dict[tuple[int, int], Kv] = defaultdict(lambda: GARBAGE)
        self.launches: list[Launch] = []  # in flight
        self.is_presumed = False  # of the oldest, its end
        self.last_tokens: dict[SequenceKey, int] = {}  # on the device
        self.broken: set[SequenceKey] = set()  # whose numbers went wrong
        self.num_fed = self.num_dropped = self.num_waits = 0
        self.all: dict[SequenceKey, Sequence] = {}
        self.right: dict[SequenceKey, tuple[list[int], FinishReason]] = {}
        self.outputs: dict[SequenceKey, list[int]] = {}
        self.ended: dict[SequenceKey, str] = {}  # how
        self.told: dict[SequenceKey, dict[int, tuple[int, int]]] = {}  # PREFILL: index -> (block, generation), readable
        self.targets: dict[SequenceKey, list[int]] = {}  # DECODE: blocks that the peer may write
        self.generations = list(self.pool.generations)
        self.chains: dict[SequenceKey, list[int]] = {}

    # ---- the client ----

    def add(
        self,
        mode: SequenceMode = SequenceMode.FULL,
        prompt: Iterable[int] = (1, 2, 3),
        *,
        outputs: Iterable[int] = (),
        salt: str = "",
        priority: int = 0,
        timeout_s: float = float("inf"),
        name: str = "",
        constrained: bool = False,
        **sampling: object,
    ) -> SequenceKey:
        key = SequenceKey(name or f"s{len(self.all)}")
        params = SamplingParams(**{"max_tokens": 4, **sampling})  # type: ignore[arg-type]
        now = self.clock.now()
        seq = Sequence(
            key, mode, list(prompt), params,
            output_token_ids=list(outputs), salt=salt, priority=priority, arrival_s=now, deadline_s=now + timeout_s,
            matcher=NeedsTokens() if constrained else None,
        )  # fmt: skip
        right = oracle(seq, self.config.max_model_len)
        self.scheduler.add(seq)
        assert key not in self.all
        self.all[key], self.right[key] = seq, right
        self.outputs[key] = list(seq.token_ids[seq.num_prompt_tokens :])
        return key

    def abort(self, key: SequenceKey) -> bool:
        """No transfer touches its blocks from now on."""
        self.told.pop(key, None)
        self.targets.pop(key, None)
        live = self.state(key) not in (SequenceState.FINISHED, SequenceState.DRAINING)
        ended = self.scheduler.abort(key)
        assert ended is live
        if ended:
            self.ended.setdefault(key, "aborted")  # or it was quarantined, which was its end
        return ended

    def quarantine(self, key: SequenceKey) -> bool:
        done = self.scheduler.quarantine(key)
        if done:
            self.ended.setdefault(key, "quarantined")
        return done

    def expire(self) -> list[SequenceUpdate]:
        updates = self.scheduler.expire()
        for update in updates:
            assert isinstance(update.error, DeadlineExceeded)
            assert self.all[update.key].deadline_s <= self.clock.now()
        self.absorb(updates)
        for key, seq in self.all.items():
            assert key in self.ended or seq.deadline_s > self.clock.now(), f"late and not told: {seq}"
        return updates

    def state(self, key: SequenceKey) -> SequenceState:
        return self.all[key].state

    # ---- the peer ----

    def commit(self, key: SequenceKey) -> bool:
        """The peer writes what the sequence lacks, and decode commits."""
        seq = self.all[key]
        if seq.state is SequenceState.RESERVED:
            size = self.pool.block_size
            self._write(seq, seq.num_cached_blocks * size, seq.num_initial_tokens, check_unshared=True)
            self.targets.pop(key)
        first = next_token(seq.token_ids[: seq.num_initial_tokens])
        updates = self.scheduler.try_commit(key, first)
        if updates is None:
            return False
        self.outputs[key].append(first)
        self.absorb(updates)
        return True

    def late_write(self, key: SequenceKey) -> None:
        """The peer's transfer is still under way, and writes nonsense as far as anyone else is concerned."""
        for block_id in self.targets.get(key, ()):
            for slot in range(self.pool.block_size):
                self.kv[block_id, slot] = GARBAGE

    def release(self, key: SequenceKey) -> bool:
        self.told.pop(key, None)
        done = self.scheduler.release(key)
        if done:
            self.ended.setdefault(key, "released")
        return done

    def read_told(self) -> None:
        """The peer reads all blocks it was told of, and finds the KV of the prompt under the generation it was told."""
        size = self.pool.block_size
        for key, blocks in self.told.items():
            seq = self.all[key]
            chains = self._chains(seq, seq.num_initial_tokens)
            for index, (block_id, generation) in blocks.items():
                assert self.pool.generations[block_id] == generation, f"block {block_id} was given away: {seq}"
                for position in range(index * size, min((index + 1) * size, seq.num_initial_tokens)):
                    found = self.kv[block_id, position % size]
                    assert found == (seq.salt, chains[position]), f"told of wrong KV at {position}: {seq}"

    # ---- the runner ----

    @property
    def batch(self) -> Batch | None:
        """The oldest in flight."""
        return self.launches[0].batch if self.launches else None

    @property
    def can_launch_ahead(self) -> bool:
        return len(self.launches) == 1 and not self.is_presumed

    def schedule(self) -> Batch:
        """The next step; ahead of one that is in flight."""
        waiting = [seq for seq in self.all.values() if seq.state is SequenceState.WAITING]
        running = [seq for seq in self.all.values() if seq.state is SequenceState.RUNNING]
        generations = list(self.pool.generations)
        before = self.launches[0] if self.launches else None
        self.is_presumed = before is not None
        batch = self.scheduler.schedule() if before is None else self.scheduler.schedule_ahead()
        if batch.steps:
            self._launch(batch)
        for seq in waiting:
            for block_id in seq.block_ids[seq.num_cached_blocks :]:
                assert self.pool.generations[block_id] > generations[block_id], f"block {block_id} given unmarked"
        for seq in batch.reserved:
            assert seq.state is SequenceState.RESERVED
            self.targets[seq.key] = seq.block_ids[seq.num_cached_blocks :]
        self._look_at_batch(batch)
        self._look_at_queue(batch, waiting)
        waits = before is not None and not batch.steps
        self._look_at_preemptions(batch, running, waits)
        if before is not None:
            self._look_at_those_left_out(before, waits)
        return batch

    def _launch(self, batch: Batch) -> None:
        copies = []
        for step in batch.steps:
            sample = step.sample and SampleRequest(
                step.sample.sampling, list(step.sample.token_ids), step.sample.num_prompt_tokens
            )
            copies.append(replace(step, token_ids=list(step.token_ids), block_ids=list(step.block_ids), sample=sample))
        named = {block_id: self.pool.generations[block_id] for step in copies for block_id in step.block_ids}
        self.launches.append(Launch(batch, copies, named))

    def _look_at_those_left_out(self, before: Launch, waits: bool) -> None:
        """Whoever is in flight and does not go on had a reason."""
        capacity = self.pool.num_blocks * self.pool.block_size
        for step in before.steps:
            seq = self.all[step.key]
            if seq.state is not SequenceState.RUNNING or seq.num_uncomputed_tokens:
                continue
            last = len(seq.token_ids) + 1 >= min(seq.max_total_tokens, capacity + 1)
            constrained = seq.sample_request.matcher is not None
            assert last or constrained or seq.mode is SequenceMode.PREFILL, f"left out: {seq}"
        self.num_waits += waits

    def _look_at_batch(self, batch: Batch) -> None:
        assert sum(len(step.token_ids) for step in batch.steps) <= self.config.max_num_batched_tokens
        assert len({step.key for step in batch.steps}) == len(batch.steps)
        for step in batch.steps:
            seq = self.all[step.key]
            assert seq.state is SequenceState.RUNNING
            assert step.start == seq.num_computed_tokens
            assert len(step.token_ids) >= 1
            assert list(step.token_ids) == seq.token_ids[step.start : step.end]
            assert len(step.block_ids) * self.pool.block_size >= step.end
            assert (step.sample is not None) is (step.end == len(seq.token_ids))
            fed = PENDING in seq.token_ids
            assert not fed or (seq.sample_request.matcher is None and list(step.token_ids) == [PENDING])
            most = min(seq.max_total_tokens - 1, self.pool.num_blocks * self.pool.block_size)
            assert not fed or len(seq.token_ids) <= most, f"its token in flight is the last: {seq}"
            self.num_fed += fed
            if step.sample is not None:
                assert step.sample.output_index == len(self.outputs[step.key]) + fed

    def _look_at_queue(self, batch: Batch, waiting: list[Sequence]) -> None:
        """First come, first served: nobody who waited was overtaken."""
        admitted = [seq.rank for seq in waiting if seq.state is not SequenceState.WAITING]
        left = [seq.rank for seq in waiting if seq.state is SequenceState.WAITING]
        assert not admitted or not left or max(admitted) < min(left)
        assert not admitted or not batch.preempted, "whoever lost its blocks must not get them back in the same breath"

    def _look_at_preemptions(self, batch: Batch, running: list[Sequence], waits: bool) -> None:
        lost = set(batch.preempted)
        for key in lost:
            seq = self.all[key]
            assert not seq.in_step, "blocks taken that a step in flight writes"
            assert seq.mode is not SequenceMode.PREFILL and seq in running
            assert seq.state is SequenceState.WAITING and not seq.block_ids and seq.num_computed_tokens == 0
        kept = [seq.rank for seq in running if seq.key not in lost and seq.mode is not SequenceMode.PREFILL]
        assert not lost or min(self.all[key].rank for key in lost) > max(kept, default=(0, -1.0, 0))
        stepped = {step.key for step in batch.steps}
        for seq in running:  # stall-free
            if seq.num_uncomputed_tokens == 1 and seq.state is SequenceState.RUNNING and seq.key not in stepped:
                if waits:
                    continue  # somebody else has no block, and whoever must give it is in flight
                full = len(seq.token_ids) > len(seq.block_ids) * self.pool.block_size
                assert full and seq.rank == max(s.rank for s in self._growing()), f"stalled: {seq}"

    def _growing(self) -> list[Sequence]:
        live = self.all.values()
        return [seq for seq in live if seq.state is SequenceState.RUNNING and seq.mode is not SequenceMode.PREFILL]

    def complete(self, failing: Iterable[SequenceKey] = ()) -> list[SequenceUpdate]:
        """Compute the oldest batch in flight, if that did not happen yet; the numbers of `failing` go wrong."""
        if self.launches[0].results is None:
            self.compute(failing)
        launch = self.launches.pop(0)
        self.is_presumed = False
        assert launch.results is not None
        ended = {key for key, seq in self.all.items() if seq.state is not SequenceState.RUNNING}
        updates = self.scheduler.complete(launch.batch, launch.results)
        assert not any(update.key in ended for update in updates)
        assert len({update.key for update in updates}) == len(updates)
        self.absorb(updates)
        return updates

    def compute(self, failing: Iterable[SequenceKey] = ()) -> None:
        """The device does the next launch."""
        launch = next(launch for launch in self.launches if launch.results is None)
        self._look_at_blocks(launch)
        self._look_at_writes(launch.steps)
        launch.results = [self._compute(step, step.key in set(failing)) for step in launch.steps]
        for step, result in zip(launch.steps, launch.results, strict=True):
            self.last_tokens[step.key] = result.token_id if isinstance(result, SampledToken) else 0

    def _look_at_blocks(self, launch: Launch) -> None:
        """What a launch in flight names is nobody else's."""
        for block_id, generation in launch.named.items():
            assert self.pool.refs(block_id) >= 1, f"block {block_id} was freed while a launch names it"
            assert self.pool.generations[block_id] == generation, f"block {block_id} was given away in flight"

    def _look_at_writes(self, steps: list[SequenceStep]) -> None:
        """What one sequence writes, no other sequence of the step reads or writes; and all of it is owned."""
        size = self.pool.block_size
        written: dict[int, SequenceKey] = {}
        for step in steps:
            for block_id in step.block_ids[step.start // size : -(-step.end // size)]:
                assert self.pool.refs(block_id) == 1, f"writes block {block_id}: {self.pool.refs(block_id)} owners"
                assert self.pool.hash_of(block_id) is None, f"writes published block {block_id}"
                assert written.setdefault(block_id, step.key) == step.key
        for step in steps:
            for block_id in step.block_ids[: -(-step.end // size)]:
                assert written.get(block_id, step.key) == step.key
                assert self.pool.refs(block_id) >= 1

    def _compute(self, step: SequenceStep, fails: bool) -> StepResult:
        seq = self.all[step.key]
        size = self.pool.block_size
        known = list(seq.token_ids[: step.start])
        chains = list(self._chains(seq, step.start)[: step.start])
        for token_id in step.token_ids:
            known.append(self.last_tokens[step.key] if token_id == PENDING else token_id)
            chains.append(hash((chains[-1] if chains else 17, known[-1])))
        if fails:
            self.broken.add(step.key)
        fails = step.key in self.broken  # then also in the launch after, whose row is dropped
        if seq.state is not SequenceState.RUNNING:
            self.num_dropped += 1
        for position in range(0 if fails else step.start):
            found = self.kv[step.block_ids[position // size], position % size]
            assert found == (seq.salt, chains[position]), f"reads another's KV at {position}: {found} {seq}"
        for position in range(step.start, step.end):
            value = GARBAGE if fails else (seq.salt, chains[position])
            self.kv[step.block_ids[position // size], position % size] = value
        if fails:
            return InvariantViolation("logits are not numbers")
        return None if step.sample is None else SampledToken(next_token(known))

    def _write(self, seq: Sequence, start: int, end: int, *, check_unshared: bool) -> None:
        size = self.pool.block_size
        chains = self._chains(seq, end)
        for position in range(start, end):
            block_id = seq.block_ids[position // size]
            assert not check_unshared or (self.pool.refs(block_id) == 1 and self.pool.hash_of(block_id) is None)
            self.kv[block_id, position % size] = (seq.salt, chains[position])

    def _chains(self, seq: Sequence, end: int) -> list[int]:
        """The chain at each position before `end`, at least."""
        chains = self.chains.setdefault(seq.key, [])
        for position in range(len(chains), end):
            chains.append(hash((chains[-1] if chains else 17, seq.token_ids[position])))
        return chains

    def absorb(self, updates: list[SequenceUpdate]) -> None:
        for update in updates:
            key, seq = update.key, self.all[update.key]
            assert key not in self.ended, f"a word after the last: {update}"
            if update.token is not None:
                assert update.output_index == len(self.outputs[key])
                self.outputs[key].append(update.token.token_id)
            if update.ready_blocks is not None:
                ready, told = update.ready_blocks, self.told.setdefault(key, {})
                assert ready.first == len(told) and ready.block_ids
                for offset, pair in enumerate(zip(ready.block_ids, ready.generations, strict=True)):
                    told[ready.first + offset] = pair
            if update.ended:
                self.ended[key] = "failed" if update.error else "finished"
                touched = bool(self.told.get(key)) or key in self.targets
                assert update.holds_blocks is touched
                assert update.holds_blocks is (seq.state is SequenceState.QUARANTINED)
            if seq.state is SequenceState.HELD and key in self.told:
                assert len(self.told[key]) == self.pool.blocks_for(seq.num_initial_tokens)

    # ---- always ----

    def check(self) -> None:
        self.scheduler.check()
        self.read_told()
        for launch in self.launches:
            self._look_at_blocks(launch)
        assert all(new >= old for new, old in zip(self.pool.generations, self.generations, strict=True))
        self.generations = list(self.pool.generations)
        assert self.scheduler.leaked_blocks() == 0
        assert self.scheduler.block_counts().total == self.pool.num_blocks
        live = [seq for seq in self.all.values() if seq.state is not SequenceState.FINISHED]
        queued = [s for s in live if s.state is SequenceState.WAITING and not s.awaits_kv]
        prompts = [s for s in live if s.state is SequenceState.RUNNING and s.num_uncomputed_tokens > 1]
        assert self.scheduler.uncomputed_tokens == sum(s.num_uncomputed_tokens for s in queued + prompts)
        for key, (tokens, reason) in self.right.items():
            assert self.outputs[key] == tokens[: len(self.outputs[key])], f"wrong tokens: {self.all[key]}"
            if self.ended.get(key) == "finished":
                assert self.outputs[key] == tokens, f"ended early: {self.all[key]} {reason}"
            elif key not in self.ended and self.state(key) is not SequenceState.HELD:
                assert len(self.outputs[key]) < len(tokens), f"did not end: {self.all[key]} {reason}"

    def step(self, failing: Iterable[SequenceKey] = ()) -> list[SequenceUpdate]:
        """Schedule and compute one step, ahead: complete the one before; empty if there was nothing to compute."""
        first = not self.launches
        batch = self.schedule()
        self.check()
        if first and self.ahead and batch.steps:
            batch = self.schedule()
            self.check()
        updates = self.complete(failing) if self.launches else []
        self.check()
        return updates

    def settle(self) -> None:
        """The outside does its part for every sequence; each must end, and the pool must be whole again."""
        while self.launches and (self.is_presumed or not self.ahead):
            self.complete()
        for _ in range(10_000):
            for key, seq in self.all.items():
                if seq.state is SequenceState.RESERVED:
                    assert self.commit(key)
                elif seq.state is SequenceState.HELD:
                    assert self.release(key)
                elif seq.state is SequenceState.QUARANTINED:
                    assert self.abort(key)
            if not self.scheduler.has_work and not self.launches:
                break
            self.step()
        assert set(self.ended) == set(self.all)
        assert all(seq.state is SequenceState.FINISHED for seq in self.all.values())
        self.check()
        counts = self.pool.counts()
        assert counts.free + counts.cached == self.pool.num_blocks == self.pool.num_free


@pytest.fixture
def make_world() -> type[World]:
    return World
