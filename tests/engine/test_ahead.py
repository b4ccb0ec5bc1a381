"""The core that launches ahead gives the tokens of the one that does not, whatever comes in between.

The runner of these tests computes a launch as late as it may, or as early; the KV of the mock engine tells whose it is,
so a block that is freed, shared or announced too early gives an error or a wrong token.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

from engine.ahead import AheadCore
from engine.core import Commit, EngineCore, Quarantine, Release, Report, Submit
from engine.mock import MockRunner, mock_layout
from engine.thread import EngineThread
from pdserve.clock import ManualClock, MonotonicClock
from pdserve.errors import DeadlineExceeded, InvariantViolation
from pdserve.ids import SequenceKey
from pdserve.kv_memory import KvMemory
from pdserve.sampling import FinishReason, SampledToken, SamplingParams
from scheduling.batching import Scheduler, SchedulerConfig, SequenceUpdate
from scheduling.blocks import BlockPool
from scheduling.latency import LatencyCoefficients, LatencyModel
from scheduling.sequence import Sequence, SequenceMode
from scheduling.step import PENDING, AheadRunner, SampleRequest, SequenceStep, StepResult

BLOCK_SIZE, VOCABULARY, MAX_LEN = 4, 13, 48
LAYOUT = mock_layout("m", BLOCK_SIZE, 16)


@dataclass(eq=False)
class Launch:
    """A step as the device was given it."""

    steps: list[SequenceStep]
    named: frozenset[int]  # blocks of its tables
    results: list[StepResult] | None = None


class DeviceRunner:
    """An AheadRunner over another runner: the launches' own copies of everything, tokens fed by itself."""

    def __init__(self, runner: MockRunner, *, early: bool = False) -> None:
        """`early`: computed when launched, not when collected."""
        self.launches: list[Launch] = []
        self.lose_launch = self.lose_collect = False
        self.num_launches = self.num_ahead = self.num_fed = 0
        self._runner, self._early = runner, early
        self._last_tokens: dict[SequenceKey, int] = {}

    def execute(self, steps: Seq[SequenceStep]) -> list[StepResult]:
        raise AssertionError("the core launches")

    def launch(self, steps: Seq[SequenceStep]) -> Launch:
        assert steps and len(self.launches) < 2
        if self.lose_launch:
            self.lose_launch = False
            raise RuntimeError("launch lost")
        launch = Launch([_copy(step) for step in steps], frozenset(b for step in steps for b in step.block_ids))
        self.num_launches += 1
        self.num_ahead += bool(self.launches)
        self.launches.append(launch)
        if self._early:
            self._compute(launch)
        return launch

    def collect(self, ticket: Launch) -> list[StepResult]:
        assert ticket is self.launches[0], "collected out of order"
        if ticket.results is None:
            self._compute(ticket)
        self.launches.pop(0)
        assert ticket.results is not None
        if self.lose_collect:
            self.lose_collect = False
            raise RuntimeError("step lost")
        return ticket.results

    def _compute(self, launch: Launch) -> None:
        for step in launch.steps:
            if PENDING in step.token_ids:
                assert step.sample is not None and step.sample.token_ids[-1] == PENDING and len(step.token_ids) == 1
                step.token_ids = [self._last_tokens[step.key]]
                known = [*step.sample.token_ids[:-1], *step.token_ids]
                step.sample = SampleRequest(step.sample.sampling, known, step.sample.num_prompt_tokens)
                self.num_fed += 1
        launch.results = self._runner.execute(launch.steps)
        for step, result in zip(launch.steps, launch.results, strict=True):
            self._last_tokens[step.key] = result.token_id if isinstance(result, SampledToken) else 0


def _copy(step: SequenceStep) -> SequenceStep:
    sample = step.sample
    if sample is not None:
        sample = SampleRequest(sample.sampling, list(sample.token_ids), sample.num_prompt_tokens)
    return replace(step, token_ids=list(step.token_ids), block_ids=list(step.block_ids), sample=sample)


class WatchedPool(BlockPool):
    """Refuses to free or give away what a launch names."""

    runner: DeviceRunner | None = None

    def free(self, block_ids: Seq[int]) -> None:
        super().free(block_ids)
        self._look([block_id for block_id in block_ids if self.refs(block_id) == 0])

    def allocate(self, n: int) -> list[int]:
        block_ids = super().allocate(n)
        self._look(block_ids)
        return block_ids

    def _look(self, block_ids: list[int]) -> None:
        for launch in self.runner.launches if self.runner is not None else ():
            assert not launch.named.intersection(block_ids), "a launch in flight names it"


class Engine:
    """One core over the mock engine's KV, and what it reported."""

    def __init__(
        self, clock: ManualClock, ahead: bool, *, num_blocks: int = 400, seats: int = 6, budget: int = 12,
        early: bool = False,
    ) -> None:  # fmt: skip
        self.memory = KvMemory(num_blocks, LAYOUT.block_bytes)
        self.pool = WatchedPool(num_blocks, BLOCK_SIZE, generations=self.memory.generations)
        config = SchedulerConfig(MAX_LEN, seats, seats + budget, watermark=0.0)
        self.scheduler = Scheduler(config, self.pool, clock)
        runner = MockRunner(LAYOUT, self.memory, LatencyModel(LatencyCoefficients()), VOCABULARY, MAX_LEN)
        self.device = DeviceRunner(runner, early=early)
        if ahead:
            self.pool.runner = self.device
            self.core: EngineCore = AheadCore(self.scheduler, self.device, clock)
        else:
            self.core = EngineCore(self.scheduler, runner, clock)

    def step(self) -> tuple[bool, Report]:
        report = Report()
        acted = self.core.step(report)
        self.scheduler.check()
        assert all(PENDING not in seq.token_ids for key in self.scheduler.live_keys() if (seq := self._get(key)))
        return acted, report

    def _get(self, key: SequenceKey) -> Sequence | None:
        return self.scheduler.get(key)

    def blocks(self, block_ids: Seq[int]) -> np.ndarray:
        """The bytes of these blocks, writable."""
        data = np.frombuffer(self.memory.data, np.uint8).reshape(self.memory.num_blocks, -1)
        return data[list(block_ids)]

    def write(self, block_ids: Seq[int], data: np.ndarray) -> None:
        np.frombuffer(self.memory.data, np.uint8).reshape(self.memory.num_blocks, -1)[list(block_ids)] = data


@cache
def oracle(prompt: tuple[int, ...]) -> list[int]:
    """What one engine that does nothing else generates, up to the context's end."""
    engine = Engine(ManualClock(), ahead=False)
    params = SamplingParams(max_tokens=MAX_LEN)
    engine.core.apply(Submit(Sequence(SequenceKey("o"), SequenceMode.FULL, prompt, params)), Report())
    tokens = []
    while (done := engine.step())[0]:
        tokens += [update.token.token_id for update in done[1].updates if update.token is not None]
    return tokens


def right_tokens(prompt: Seq[int], sampling: SamplingParams) -> tuple[list[int], FinishReason]:
    tokens = oracle(tuple(prompt))[: sampling.max_tokens]
    for index, token in enumerate(tokens):
        if token in sampling.end_token_ids and index >= sampling.min_tokens:
            return tokens[: index + 1], FinishReason.STOP
    return tokens, FinishReason.LENGTH


class Client:
    """Random requests to an engine, or to a pair of them, and what became of each."""

    def __init__(self, rng: random.Random, prefill: Engine, decode: Engine, clock: ManualClock) -> None:
        self.rng, self.prefill, self.decode, self.clock = rng, prefill, decode, clock
        self.engines = [prefill] if prefill is decode else [prefill, decode]
        self.right: dict[SequenceKey, tuple[list[int], FinishReason]] = {}
        self.prompts: dict[SequenceKey, list[int]] = {}
        self.tokens: dict[SequenceKey, list[int]] = {}
        self.ends: dict[SequenceKey, str] = {}
        self.ready: dict[SequenceKey, list[int]] = {}  # prefill's blocks told of
        self.room: dict[SequenceKey, tuple[tuple[int, ...], int]] = {}
        self.committed: set[SequenceKey] = set()

    def submit(self) -> None:
        rng = self.rng
        key = SequenceKey(f"r{len(self.right)}")
        prompt = [i % 5 for i in range(rng.randint(1, 18))] + [rng.randrange(VOCABULARY)]
        ends = tuple(rng.sample(range(VOCABULARY), rng.choice([0, 0, 1, 2])))
        params = SamplingParams(max_tokens=rng.randint(1, 16), eos_token_ids=ends, min_tokens=rng.choice([0, 0, 1]))
        deadline_s = self.clock.now() + rng.choice([math.inf, math.inf, math.inf, 0.7])
        self.right[key], self.tokens[key], self.prompts[key] = right_tokens(prompt, params), [], prompt
        if len(self.engines) == 1:
            parts = [(self.prefill, SequenceMode.FULL)]
        else:
            parts = [(self.prefill, SequenceMode.PREFILL), (self.decode, SequenceMode.DECODE)]
        for engine, mode in parts:
            report = Report()
            sequence = Sequence(key, mode, prompt, params, arrival_s=self.clock.now(), deadline_s=deadline_s)
            engine.core.apply(Submit(sequence), report)
            assert not report.rejected

    def turn(self) -> bool:
        acted = False
        for engine in self.engines:
            did, report = engine.step()
            acted |= did
            for room in report.room:
                self.room[room.key] = room.block_ids, room.skip
            for update in report.updates:
                self._take(engine, update)
        for key in list(self.room):
            acted |= self._try_hand_over(key)
        return acted

    def _take(self, engine: Engine, update: SequenceUpdate) -> None:
        key = update.key
        if update.token is not None:
            assert update.output_index == len(self.tokens[key]) and key not in self.ends
            self.tokens[key].append(update.token.token_id)
        if update.ready_blocks is not None:
            self.ready.setdefault(key, []).extend(update.ready_blocks.block_ids)
        if update.error is not None:
            assert isinstance(update.error, DeadlineExceeded | InvariantViolation)
            self.end(key, type(update.error).__name__)
        elif update.finish_reason is not None:
            assert (self.tokens[key], update.finish_reason) == self.right[key]
            self.end(key, "finished")

    def _try_hand_over(self, key: SequenceKey) -> bool:
        """Prefill has computed and told all, decode has room: the bytes are copied, and decode goes on."""
        if key in self.committed or not self.tokens[key] or key in self.ends or self.rng.random() < 0.3:
            return False
        block_ids, skip = self.room[key]
        assert len(self.ready[key]) == len(block_ids)
        self.decode.write(block_ids[skip:], self.prefill.blocks(self.ready[key][skip:]))
        self.committed.add(key)
        report = Report()
        self.decode.core.apply(Commit(key, self.tokens[key][0]), report)
        self.prefill.core.apply(Release(key), report)
        for update in report.updates:
            self._take(self.decode, update)
        return True

    def end(self, key: SequenceKey, how: str) -> None:
        """However it ended, both sides forget it; some first keep its blocks for a while."""
        self.ends.setdefault(key, how)
        self.room.pop(key, None)
        for engine in self.engines:
            if self.rng.random() < 0.3:
                engine.core.apply(Quarantine(key), Report())
            engine.core.apply(Release(key), Report())

    def abort_one(self) -> None:
        live = [key for key in self.right if key not in self.ends]
        if live:
            self.end(self.rng.choice(live), "aborted")


def run_client(seed: int, *, ahead: bool, split: bool, lose: bool) -> tuple[Client, Counter[str]]:
    rng, clock = random.Random(seed), ManualClock()
    early = rng.random() < 0.3
    small = rng.choice([9, 12, 20])
    prefill = Engine(clock, ahead, num_blocks=60 if split else small, early=early)
    decode = Engine(clock, ahead, num_blocks=small, early=early) if split else prefill
    client = Client(rng, prefill, decode, clock)
    for _ in range(150):
        if rng.random() < 0.25:
            client.submit()
        if rng.random() < 0.03:
            client.abort_one()
        if lose and rng.random() < 0.04:
            device = rng.choice(client.engines).device
            if rng.random() < 0.5:
                device.lose_launch = True
            else:
                device.lose_collect = True
        clock.advance(0.1)
        client.turn()
    for _ in range(5_000):
        if not client.turn() and len(client.ends) == len(client.right):
            break
    assert set(client.ends) == set(client.right)
    for key, tokens in client.tokens.items():
        assert tokens == client.right[key][0][: len(tokens)]
    met = Counter(client.ends.values())
    for engine in client.engines:
        engine.core.close()
        assert not engine.device.launches and not engine.scheduler.live_keys()
        assert engine.scheduler.leaked_blocks() == 0 and engine.pool.num_free == engine.pool.num_blocks
        met["preempted"] += engine.scheduler.num_preemptions
        met["ahead"] += engine.device.num_ahead
        met["fed"] += engine.device.num_fed
    return client, met


@pytest.mark.parametrize("split", [False, True], ids=["one engine", "handoff"])
@pytest.mark.parametrize("lose", [False, True], ids=["", "steps lost"])
def test_tokens_are_those_of_the_engine_that_waits(split: bool, lose: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random arrivals, end tokens, aborts, deadlines, preemption, commits, lost steps: each token is right, and each
    sequence that nobody ended ends as it would have; no block of a launch in flight is freed; nothing leaks."""
    monkeypatch.setattr("engine.core.MAX_LOST_STEPS", math.inf)
    met: Counter[str] = Counter()
    for seed in range(25):
        try:
            met += run_client(seed, ahead=True, split=split, lose=lose)[1]
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
    wanted = ("finished", "aborted", "DeadlineExceeded", "preempted", "ahead", "fed")
    assert all(met[what] >= 10 for what in wanted), met
    assert (met["InvariantViolation"] >= 20) is lose, met


def test_the_same_client_finds_the_same_in_the_engine_that_waits() -> None:
    """The client's own rules hold without launching ahead: what it demands is no more than the plain core gives."""
    for seed in range(4):
        _, met = run_client(seed, ahead=False, split=seed % 2 == 1, lose=False)
        assert met["finished"] and not met["ahead"]


def decoding() -> tuple[Engine, list[SequenceKey]]:
    """Four sequences that were submitted together and decode for long."""
    engine = Engine(ManualClock(), ahead=True)
    keys = [SequenceKey(str(index)) for index in range(4)]
    for index, key in enumerate(keys):
        params = SamplingParams(max_tokens=20)
        engine.core.apply(Submit(Sequence(key, SequenceMode.FULL, [index, 1], params)), Report())
    return engine, keys


def test_the_device_always_has_the_next_step() -> None:
    """While sequences decode, every collect finds another launch given: with blocks enough the device never waits."""
    engine, _ = decoding()
    waiting_at_collect = []
    collect = engine.device.collect

    def spy(ticket: Launch) -> list[StepResult]:
        waiting_at_collect.append(len(engine.device.launches) - 1)
        return collect(ticket)

    engine.device.collect = spy  # type: ignore[method-assign]
    while engine.step()[0]:
        pass
    assert waiting_at_collect == [1] * 19 + [0], "all but the last"
    assert isinstance(engine.device, AheadRunner)


def test_a_step_is_as_long_as_the_device_takes() -> None:
    """From when it could begin, launched and the one before it done, until it was collected."""
    engine, _ = decoding()
    clock = engine.core.clock
    assert isinstance(clock, ManualClock)
    collect = engine.device.collect

    def slow(ticket: Launch) -> list[StepResult]:
        clock.advance(2.0)
        return collect(ticket)

    engine.device.collect = slow  # type: ignore[method-assign]
    seconds = []
    while (done := engine.step())[0]:
        clock.advance(0.5)  # the host's share, hidden
        if done[1].stats is not None:
            seconds.append(done[1].stats.seconds)
    assert seconds == [2.5] * 20
    clock.advance(100.0)
    engine.core.apply(
        Submit(Sequence(SequenceKey("x"), SequenceMode.FULL, [1], SamplingParams(max_tokens=1))), Report()
    )
    engine.step()
    stats = engine.step()[1].stats
    assert stats is not None and stats.seconds == 2.0, "rest is no part of a step"


def test_too_many_lost_steps_in_a_row_end_the_engine() -> None:
    """As without launching ahead: the third raises; a step that comes through in between starts the count anew."""
    for lose in ("lose_launch", "lose_collect"):
        engine, keys = decoding()
        ends: dict[SequenceKey, object] = {}
        with pytest.raises(RuntimeError, match="lost"):
            for turn in range(20):
                key = SequenceKey(f"more {turn}")
                more = Sequence(key, SequenceMode.FULL, [turn], SamplingParams(max_tokens=9))
                engine.core.apply(Submit(more), Report())
                setattr(engine.device, lose, turn not in (0, 1, 4))
                for update in engine.step()[1].updates:
                    if update.ended:
                        ends[update.key] = update.error
        assert turn == 7
        assert all(isinstance(ends[key], InvariantViolation) for key in keys)


def test_the_thread_rests_with_nothing_in_flight_and_waits_for_what_is_when_it_stops() -> None:
    """Everything launched is collected: before it sleeps, and before it ends."""

    async def walk(stop_early: bool) -> None:
        engine = Engine(ManualClock(), ahead=True)
        core = AheadCore(engine.scheduler, engine.device, MonotonicClock())
        reports: asyncio.Queue[Report] = asyncio.Queue()
        thread = EngineThread(core, asyncio.get_running_loop(), reports.put_nowait, lambda error: None)
        params = SamplingParams(max_tokens=12)
        thread.put(Submit(Sequence(SequenceKey("a"), SequenceMode.FULL, [1, 2], params)))
        thread.start()
        tokens: list[int] = []
        async with asyncio.timeout(20.0):
            while len(tokens) < (3 if stop_early else 12):
                updates: list[SequenceUpdate] = (await reports.get()).updates
                tokens += [update.token.token_id for update in updates if update.token is not None]
            while not stop_early and (await reports.get()).stats is not None:
                pass
        if not stop_early:
            assert not engine.device.launches
        assert await asyncio.to_thread(thread.stop)
        assert not engine.device.launches
        assert tokens == oracle((1, 2))[: len(tokens)]

    for stop_early in (False, True):
        asyncio.run(walk(stop_early))


def test_runners_that_cannot_launch_are_told_apart() -> None:
    """A worker's engine launches ahead where its runner can."""
    memory = KvMemory(4, LAYOUT.block_bytes)
    runner = MockRunner(LAYOUT, memory, LatencyModel(LatencyCoefficients()), VOCABULARY, MAX_LEN)
    assert not isinstance(runner, AheadRunner) and isinstance(DeviceRunner(runner), AheadRunner)
