"""Random lives of random sequences on small pools: whatever happens in whatever order, every promise holds.

With one step in flight, and with the next launched ahead of it. Twice: a hypothesis state machine, which shrinks what
it finds, and long seeded walks, which go deeper for the same time and must have crossed every edge of the state table.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pdserve.errors import QueueFull, RequestError
from scheduling.sequence import NEXT, Sequence, SequenceMode, SequenceState
from scheduling.sequence_table import SequenceTable

S = SequenceState
PICK = st.integers(0, 1_000)


class SchedulerMachine(RuleBasedStateMachine):
    """`World` (conftest) looks at every step; the rules are what the outside may do, at any time."""

    def __init__(self, make_world: Any, ahead: bool) -> None:
        super().__init__()
        self.make_world = make_world
        self.ahead = ahead
        self.world: Any = None

    @initialize(
        num_blocks=st.integers(4, 24),
        block_size=st.integers(1, 4),
        seats=st.integers(1, 6),
        budget=st.integers(0, 12),
        watermark=st.sampled_from([0.0, 0.1, 0.4]),
        mixed=st.sampled_from([None, 1, 3]),
        caching=st.sampled_from([True, True, True, False]),
    )
    def begin(
        self, num_blocks: int, block_size: int, seats: int, budget: int, watermark: float, mixed: Any, caching: bool
    ) -> None:
        self.world = self.make_world(
            num_blocks=num_blocks, block_size=block_size, max_num_seqs=seats, max_num_batched_tokens=seats + budget,
            max_model_len=24, max_queued_sequences=10, watermark=watermark, mixed_prefill_tokens=mixed,
            prefix_caching=caching, ahead=self.ahead,
        )  # fmt: skip

    @rule(
        mode=st.sampled_from(SequenceMode),
        family=st.integers(0, 1),
        shared=st.integers(1, 16),
        tail=st.lists(st.integers(0, 2), max_size=3),
        delivered=st.sampled_from([0, 0, 0, 1, 3]),
        max_tokens=st.integers(1, 16),
        min_tokens=st.integers(0, 3),
        ends=st.sampled_from([(), (), (3,), (3, 5, 7)]),
        salt=st.sampled_from(["a", "a", "a", "b"]),
        priority=st.sampled_from([0, 0, 0, 1]),
        timeout_s=st.sampled_from([float("inf"), float("inf"), 3.0, 8.0]),
        constrained=st.sampled_from([False, False, False, True]),
    )
    def add(
        self, mode: SequenceMode, family: int, shared: int, tail: list[int], delivered: int, max_tokens: int,
        min_tokens: int, ends: tuple[int, ...], salt: str, priority: int, timeout_s: float,
        constrained: bool,
    ) -> None:  # fmt: skip
        prompt = [(i * i + family) % 7 for i in range(shared)] + tail
        try:
            self.world.add(
                mode, prompt, outputs=range(delivered), salt=salt, priority=priority, timeout_s=timeout_s,
                max_tokens=delivered + max_tokens, min_tokens=min_tokens, eos_token_ids=ends, constrained=constrained,
            )  # fmt: skip
        except (QueueFull, RequestError):
            pass  # refused: nothing may have changed, which check() sees

    @precondition(lambda self: self.world.batch is None)
    @rule()
    def schedule(self) -> None:
        self.world.schedule()

    @precondition(lambda self: self.ahead and self.world.can_launch_ahead)
    @rule()
    def launch_ahead(self) -> None:
        self.world.schedule()

    @precondition(lambda self: any(launch.results is None for launch in self.world.launches))
    @rule()
    def device(self) -> None:
        self.world.compute()

    @precondition(lambda self: self.world.batch is not None)
    @rule(fails=st.sampled_from([False] * 9 + [True]), pick=PICK)
    def complete(self, fails: bool, pick: int) -> None:
        steps = self.world.batch.steps
        self.world.complete([steps[pick % len(steps)].key] if fails else [])

    @precondition(lambda self: self.world.batch is None or (self.ahead and self.world.can_launch_ahead))
    @rule(times=st.integers(1, 12))
    def steps(self, times: int) -> None:
        for _ in range(times):
            self.world.step()

    @rule(seconds=st.sampled_from([0.5, 2.0]))
    def expire(self, seconds: float) -> None:
        self.world.clock.advance(seconds)
        self.world.expire()

    def _pick(self, pick: int, *states: SequenceState) -> Any:
        keys = [key for key, seq in self.world.all.items() if not states or seq.state in states]
        return keys[pick % len(keys)] if keys else None

    def _any(*states: SequenceState) -> Any:  # type: ignore[misc]
        return precondition(lambda self: any(not states or s.state in states for s in self.world.all.values()))

    @_any(S.RESERVED)
    @rule(pick=PICK)
    def commit(self, pick: int) -> None:
        assert self.world.commit(self._pick(pick, S.RESERVED))

    @_any(S.HELD)
    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        assert self.world.release(self._pick(pick, S.HELD))

    @_any(S.QUARANTINED)
    @rule(pick=PICK)
    def transfer_drained(self, pick: int) -> None:
        assert self.world.abort(self._pick(pick, S.QUARANTINED))

    @_any(S.RESERVED, S.QUARANTINED)
    @rule(pick=PICK)
    def late_write(self, pick: int) -> None:
        self.world.late_write(self._pick(pick, S.RESERVED, S.QUARANTINED))

    @_any(S.RUNNING, S.RESERVED, S.HELD)
    @rule(pick=PICK)
    def quarantine(self, pick: int) -> None:
        assert self.world.quarantine(self._pick(pick, S.RUNNING, S.RESERVED, S.HELD))

    @_any()
    @rule(pick=PICK)
    def abort(self, pick: int) -> None:
        self.world.abort(self._pick(pick))

    @_any()
    @rule(pick=PICK)
    def stale(self, pick: int) -> None:
        """A late or repeated call for whatever sequence changes nothing where it does not belong."""
        key, scheduler = self._pick(pick), self.world.scheduler
        state = self.world.state(key)
        before = scheduler.stale_calls
        if state is not S.RESERVED:
            assert scheduler.try_commit(key, 1) is None
            before += 1
        if state not in (S.HELD, S.QUARANTINED):
            assert not scheduler.release(key)
            before += 1
        if state in (S.WAITING, S.DRAINING, S.FINISHED):
            assert not scheduler.quarantine(key)
            before += 1
        assert scheduler.stale_calls == before and self.world.state(key) is state

    @invariant()
    def holds(self) -> None:
        if self.world is not None:
            self.world.check()

    def teardown(self) -> None:
        if self.world is not None:
            self.world.settle()


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [False, True], ids=["in turn", "ahead"])
def test_every_promise_holds_whatever_happens(make_world: Any, ahead: bool) -> None:
    """Slots read hold the reader's own prefix; budget, queue order, ledger, tokens and ends are right; all is freed."""
    config = settings(
        max_examples=100,
        stateful_step_count=50,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    run_state_machine_as_test(lambda: SchedulerMachine(make_world, ahead), settings=config)


def _walk(make_world: Any, seed: int, num_acts: int, ahead: bool) -> Any:
    """One world under pressure: more sequences than it has room for, and an outside that does anything at any time."""
    rng = random.Random(seed)
    longest = rng.choice([3, 16])  # of the prompts: short ones come in numbers, grow, and are preempted
    seats, block_size = rng.randint(1 if longest > 3 else 3, 6), rng.randint(1, 4)
    num_blocks = rng.randint(5, 24 if longest > 3 else 10)
    world = make_world(
        num_blocks=num_blocks, block_size=block_size, max_num_seqs=seats,
        max_num_batched_tokens=seats + rng.randint(0, 12), max_model_len=rng.choice([16, 24, 40]),
        max_queued_sequences=6, watermark=rng.choice([0.0, 0.0, 0.1, 0.4]),
        mixed_prefill_tokens=rng.choice([None, None, 1, 3]), prefix_caching=rng.random() < 0.8, ahead=ahead,
    )  # fmt: skip
    modes = rng.choice([[m] for m in SequenceMode] + [list(SequenceMode)] * 2)
    chaos = rng.choice([0.02, 0.1, 0.3])  # how often something ends before its time
    for _ in range(num_acts):
        if rng.random() < 0.3:
            _add(world, rng, rng.choice(modes), longest)
        if ahead and world.can_launch_ahead and rng.random() < 0.8:
            world.schedule()
        elif world.batch is not None and rng.random() < 0.3:
            if rng.random() < 0.5 and world.launches[-1].results is None:
                world.compute()
            # or the step takes its time
        elif world.batch is not None:
            failing = [rng.choice(world.batch.steps).key] if rng.random() < chaos / 5 else []
            world.complete(failing)
        elif rng.random() < 0.9:
            world.schedule()
        keys = [key for key, seq in world.all.items() if seq.state is not S.FINISHED]
        for key in rng.sample(keys, min(len(keys), 2)):
            _act(world, rng, key, chaos)
        if rng.random() < 0.2:
            world.clock.advance(0.5)
            world.expire()
        world.check()
    world.settle()
    return world


def _add(world: Any, rng: random.Random, mode: SequenceMode, longest: int) -> None:
    family, delivered = rng.randint(0, 1), rng.choice([0, 0, 0, 2])
    prompt = [(i * i + family) % 7 for i in range(rng.randint(1, longest))] + [rng.randint(0, 2)] * rng.randint(0, 2)
    try:
        world.add(
            mode, prompt, outputs=range(delivered), salt=rng.choice("aaab"), priority=rng.choice([0, 0, 0, 1]),
            timeout_s=rng.choice([float("inf"), float("inf"), 4.0, 12.0]), max_tokens=delivered + rng.randint(1, 16),
            min_tokens=rng.randint(0, 3), eos_token_ids=rng.choice([(), (), (3,), (3, 5, 7)]),
            constrained=rng.random() < 0.2,
        )  # fmt: skip
    except (QueueFull, RequestError):
        pass


def _act(world: Any, rng: random.Random, key: Any, chaos: float) -> None:
    state = world.state(key)
    if rng.random() < chaos:
        world.quarantine(key) if rng.random() < 0.5 else world.abort(key)
    elif state is S.RESERVED:
        world.late_write(key) if rng.random() < 0.5 else world.commit(key)
    elif state is S.HELD and rng.random() < 0.5:
        world.release(key)
    elif state is S.QUARANTINED:
        world.late_write(key) if rng.random() < 0.5 else world.abort(key)


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [False, True], ids=["in turn", "ahead"])
def test_long_walks_hold_every_promise_and_cross_every_edge(
    make_world: Any, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    """As above; and every move of the state table has happened, as have preemption, eviction and cache hits."""
    edges: Counter[tuple[SequenceState, SequenceState]] = Counter()
    move = SequenceTable.move

    def spy(table: SequenceTable, seq: Sequence, to: SequenceState) -> None:
        edges[seq.state, to] += 1
        move(table, seq, to)

    monkeypatch.setattr(SequenceTable, "move", spy)
    met: Counter[str] = Counter()
    for seed in range(80):
        try:
            world = _walk(make_world, seed, 120, ahead)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        met["preemptions"] += world.scheduler.num_preemptions
        met["cache hits"] += sum(seq.cached_tokens > 0 for seq in world.all.values())
        met["evictions"] += world.pool.num_published - world.pool.counts().cached
        met.update(world.ended.values())
        met["fed"] += world.num_fed
        met["dropped"] += world.num_dropped
        met["waits"] += world.num_waits
    missed = {(a.value, b.value) for a in NEXT for b in NEXT[a] if edges[a, b] < 5}
    assert not missed
    assert all(met[what] >= 50 for what in ("preemptions", "cache hits", "evictions", "finished", "failed")), met
    assert not ahead or all(met[what] >= 50 for what in ("fed", "dropped", "waits")), met
