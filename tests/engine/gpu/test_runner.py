"""The GPU runner whole, on CPU tensors: kernels interpreted, graphs as plain calls. Tokens equal TorchRunner's."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.ahead import AheadCore
from engine.attention import ReferenceAttention
from engine.core import EngineCore, Report, Submit
from engine.families import TESTED
from engine.gpu.host_reads import no_host_reads
from engine.gpu.queue import HostQueue
from engine.kv_pool import KvPool
from engine.model import LoadedModel, load_model
from engine.runner import TorchRunner
from pdserve.clock import MonotonicClock
from pdserve.errors import ServingError
from pdserve.ids import SequenceKey
from pdserve.sampling import SampledToken, SamplingParams
from scheduling.batching import Scheduler, SchedulerConfig
from scheduling.blocks import BlockPool
from scheduling.sequence import Sequence as EngineSequence
from scheduling.sequence import SequenceMode
from scheduling.step import PENDING, AheadRunner, SampleRequest, SequenceStep

pytestmark = pytest.mark.usefixtures("kernel_device")

BLOCK_SIZE = 16
MAX_LEN = 256
MAX_SEQS = 4


class Sequence:
    """One sequence, stepped by hand."""

    def __init__(self, name: str, prompt: list[int], sampling: SamplingParams, block_ids: list[int]) -> None:
        self.tokens, self.num_prompt, self.sampling = list(prompt), len(prompt), sampling
        self.results: list[SampledToken] = []
        self.computed = 0
        self.step = SequenceStep(SequenceKey(name), [], 0, block_ids, None)
        self.request = SampleRequest(sampling, self.tokens, len(prompt))

    def share(self, chunk: int) -> SequenceStep:
        """The next step's share; the same object every time, as the scheduler does."""
        self.step.token_ids = self.tokens[self.computed : self.computed + chunk]
        self.step.start = self.computed
        self.step.sample = self.request if self.step.end == len(self.tokens) else None
        return self.step

    def enter(self, result: Any, computed: int) -> None:
        self.computed = computed
        assert not isinstance(result, ServingError)
        if result is not None:
            self.results.append(result)
            self.tokens.append(result.token_id)


class Case:
    """A tiny model behind both runners, and sequences whose steps, chunks and blocks are drawn by a seed."""

    def __init__(self, model: LoadedModel, device: torch.device) -> None:
        self.model, self.device = model, device
        self.layout = model.kv_layout(BLOCK_SIZE)
        self.num_blocks = MAX_SEQS * MAX_LEN // BLOCK_SIZE

    def pool(self) -> KvPool:
        pool = KvPool(self.layout, self.num_blocks, device=self.device)
        pool.data.fill_(float("nan"))
        return pool

    def reference(self) -> TorchRunner:
        pool = self.pool()
        return TorchRunner(self.model, pool, ReferenceAttention(pool))

    def gpu_runner(self, max_seqs: int = MAX_SEQS, capture: bool = True) -> Any:
        """By name: where Triton is missing this file is still collected."""
        module = importlib.import_module("engine.gpu.runner")
        runner = module.GpuRunner(self.model.kernels.module, self.pool(), MAX_LEN, max_seqs, 512)
        assert runner.capture() if capture else True
        return runner

    def run(self, runner: Any, samplings: list[SamplingParams], seed: int, longest: int = 45) -> list[Sequence]:
        """To the end, in mixed steps; every sequence starts at another time."""
        chance = random.Random(seed)
        blocks = chance.sample(range(self.num_blocks), self.num_blocks)
        vocab, per = self.model.vocab_size, MAX_LEN // BLOCK_SIZE
        waiting = [
            Sequence(
                str(index), [chance.randrange(vocab) for _ in range(chance.randint(1, longest))], sampling,
                blocks[index * per : (index + 1) * per],
            )
            for index, sampling in enumerate(samplings)
        ]  # fmt: skip
        everyone, running = list(waiting), [waiting.pop(0)]
        while running or waiting:
            if waiting and chance.random() < 0.7:
                running.append(waiting.pop(0))
            chance.shuffle(running)
            steps = [one.share(chance.choice([1, 7, 40, 100])) for one in running]
            ends = [step.end for step in steps]
            for one, result, end in zip(running, runner.execute(steps), ends, strict=True):
                one.enter(result, end)
            running = [one for one in running if len(one.results) < one.sampling.max_tokens]
        return everyone


@pytest.fixture(scope="module")
def case(tiny_dir: Callable[..., Path], kernel_device: torch.device) -> Callable[..., Case]:
    """A tiny model of a family, computed by its module alone."""

    def make(arch: str, **fields: Any) -> Case:
        model = load_model(
            tiny_dir(arch, **fields), "float32", kernel_device, MAX_LEN, deterministic=False, kernels="torch"
        )
        return Case(model, kernel_device)

    return make


def mixture(count: int, seed: int) -> list[SamplingParams]:
    """Greedy and random, with penalties and log-probabilities."""
    chance = random.Random(seed)
    return [
        SamplingParams(
            max_tokens=chance.randint(3, 6),
            temperature=chance.choice([0.0, 0.8]),
            top_p=chance.choice([1.0, 0.9]),
            top_k=chance.choice([0, 20]),
            repetition_penalty=chance.choice([1.0, 1.2]),
            frequency_penalty=chance.choice([0.0, 0.3]),
            seed=chance.getrandbits(64),
            logprobs=chance.choice([None, 2]),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("arch", ["llama", "gpt_oss"])
def test_tokens_equal_the_reference_runner(case: Callable[..., Case], arch: str) -> None:
    """Prompts in chunks beside decodes, graphs of several sizes, all kinds of sampling: the same tokens."""
    tiny = case(arch)
    samplings = [SamplingParams(max_tokens=6), *mixture(MAX_SEQS - 1, seed=3)]
    ours = tiny.run(tiny.gpu_runner(), samplings, seed=1)
    theirs = tiny.run(tiny.reference(), samplings, seed=1)
    for one, other in zip(ours, theirs, strict=True):
        assert one.tokens == other.tokens
        for mine, expected in zip(one.results, other.results, strict=True):
            assert (mine.logprobs is None) == (expected.logprobs is None)
            if mine.logprobs is not None and expected.logprobs is not None:
                assert abs(mine.logprobs.logprob - expected.logprobs.logprob) < 1e-4


def test_a_step_is_launched_before_the_last_is_collected(case: Callable[..., Case]) -> None:
    """Tokens that the host does not know yet are fed on the device: the same tokens as one step after the other."""
    tiny = case("llama", num_layers=1)
    samplings = [SamplingParams(max_tokens=5), *(replace(one, max_tokens=5) for one in mixture(2, seed=9))]
    expected = tiny.run(tiny.reference(), samplings, seed=2, longest=20)
    chance, runner = random.Random(2), tiny.gpu_runner(3)
    blocks = chance.sample(range(tiny.num_blocks), tiny.num_blocks)
    per = MAX_LEN // BLOCK_SIZE
    ours = [
        Sequence(str(i), one.tokens[: one.num_prompt], one.sampling, blocks[i * per : (i + 1) * per])
        for i, one in enumerate(expected)
    ]
    before = runner.launch([one.share(100) for one in ours])
    for turn in range(1, 5):
        for one in ours:
            one.computed = len(one.tokens)
            one.tokens.append(PENDING)
        launched = runner.launch([one.share(1) for one in ours])
        for one, result in zip(ours, runner.collect(before), strict=True):
            one.tokens[one.num_prompt + turn - 1] = result.token_id
        before = launched
    for one, result, other in zip(ours, runner.collect(before), expected, strict=True):
        assert [*one.tokens, result.token_id] == other.tokens
    with pytest.raises(AssertionError, match="never collected"):
        for _ in range(3):
            runner.launch([ours[0].share(1)])


def test_steps_too_long_for_a_graph_run_eagerly(case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch) -> None:
    """With hardly any scratch for captured steps the tokens are the same."""
    tiny = case("llama", num_layers=1)
    samplings = [SamplingParams(max_tokens=4)] * 2
    expected = [one.tokens for one in tiny.run(tiny.reference(), samplings, seed=4)]
    monkeypatch.setattr("engine.gpu.splits.FIRST_SPLIT", 16)  # positions of a split, on the host
    monkeypatch.setattr("engine.gpu.attention.FIRST_SPLIT", 16)  # and on the device
    monkeypatch.setattr("engine.gpu.attention.SCRATCH_BYTES", 0)
    found = tiny.run(tiny.gpu_runner(2), samplings, seed=4)
    assert [one.tokens for one in found] == expected


def test_a_model_that_asks_the_device_runs_without_graphs(
    case: Callable[..., Case], caplog: pytest.LogCaptureFixture
) -> None:
    """A pass that reads a number is found before it is captured; its steps run eagerly, and the log says why."""
    tiny = case("llama", num_layers=1)
    head = tiny.model.kernels.module.lm_head

    def reads(_module: Any, inputs: Any) -> None:
        assert float(inputs[0].sum()) is not None

    handle = head.register_forward_pre_hook(reads)
    try:
        runner = tiny.gpu_runner(capture=False)
        assert not runner.capture()
        assert "without CUDA graphs: the forward pass reads a number" in caplog.text
        found = tiny.run(runner, [SamplingParams(max_tokens=3)], seed=5)
    finally:
        handle.remove()
    assert found[0].tokens == tiny.run(tiny.reference(), [SamplingParams(max_tokens=3)], seed=5)[0].tokens


def test_seats_are_reused_when_many_sequences_came_and_went(case: Callable[..., Case]) -> None:
    """More sequences than seats, one after the other, some coming back after their seat was given away."""
    tiny = case("llama", num_layers=1)
    samplings = [SamplingParams(max_tokens=2)] * 3
    expected = [tiny.run(tiny.reference(), [one], seed=seed)[0].tokens for seed, one in enumerate(samplings)]
    runner = tiny.gpu_runner(1, capture=False)
    for _ in range(2):
        found = [tiny.run(runner, [one], seed=seed)[0].tokens for seed, one in enumerate(samplings)]
        assert found == expected


def test_a_launch_asks_the_device_nothing(case: Callable[..., Case]) -> None:
    """Prompts, decodes fed on the device, every kind of sampling: what would wait for a device is refused here."""
    tiny = case("llama", num_layers=1)
    module = importlib.import_module("engine.gpu.runner")
    runner = tiny.gpu_runner(2, capture=False)
    assert runner.warm_up(64)
    assert not runner.pool.data[:4].count_nonzero()
    everything = replace(module.EVERYTHING, max_tokens=9, min_tokens=3)
    ours = [Sequence("a", [1, 2, 3], everything, [4]), Sequence("b", [5], SamplingParams(max_tokens=9), [9])]
    launched = []
    for chunk in (100, 1):
        with no_host_reads():
            launched.append(runner.launch([one.share(chunk) for one in ours]))
        for one in ours:
            one.computed = len(one.tokens)
            one.tokens.append(PENDING)
    for one in launched:
        assert all(isinstance(result, SampledToken) for result in runner.collect(one))


CANNOT_BE_CAPTURED: frozenset[str] = frozenset()


@pytest.mark.parametrize("arch", TESTED)
def test_families_never_ask_the_device(case: Callable[..., Case], arch: str) -> None:
    """A decode pass of every tested family holds nothing that a graph cannot, as far as a CPU shows."""
    made = {"gemma3_text": "gemma3"}.get(arch, arch)
    tiny = case(made)
    runner = tiny.gpu_runner(1, capture=False)
    assert runner.capture() is (arch not in CANNOT_BE_CAPTURED)
    sampling = [SamplingParams(max_tokens=2)]
    found, expected = (tiny.run(one, sampling, seed=6, longest=20)[0].tokens for one in (runner, tiny.reference()))
    assert found == expected


@pytest.mark.parametrize("ahead", [False, True], ids=["in turn", "ahead"])
def test_the_engine_core_drives_it(case: Callable[..., Case], ahead: bool) -> None:
    """Real scheduling over few blocks: chunks, prefix hits, preemption, end tokens and all kinds of sampling give the
    reference's tokens, also with each step launched before the last is collected."""
    tiny = case("llama", num_layers=1)
    chance = random.Random(8)
    common = [chance.randrange(512) for _ in range(16)]
    prompts = [[*common, *(chance.randrange(512) for _ in range(5 + 2 * i))] for i in range(6)]
    bare = [SamplingParams(max_tokens=18)] * 3
    samplings = [replace(one, max_tokens=18, min_tokens=4) for one in [*bare, *mixture(3, seed=5)]]

    def tokens(runner: Any, core_class: Any) -> tuple[list[list[int]], int]:
        blocks = BlockPool(5, BLOCK_SIZE)
        scheduler = Scheduler(SchedulerConfig(64, 4, 16), blocks, MonotonicClock())
        core, report = core_class(scheduler, runner, MonotonicClock()), Report()
        keys = [SequenceKey(str(index)) for index in range(len(prompts))]
        for key, prompt, sampling in zip(keys, prompts, samplings, strict=True):
            core.apply(Submit(EngineSequence(key, SequenceMode.FULL, prompt, sampling)), report)
        while core.step(report):
            scheduler.check()
        found: dict[SequenceKey, list[int]] = {key: [] for key in keys}
        for update in report.updates:
            assert update.error is None
            if update.token is not None:
                found[update.key].append(update.token.token_id)
        assert not scheduler.has_work and blocks.num_free == blocks.num_blocks
        return list(found.values()), scheduler.num_preemptions

    free, _ = tokens(tiny.reference(), EngineCore)
    assert all(len(one) == 18 for one in free)
    samplings[3:] = [replace(s, stop_token_ids=(one[7],)) for s, one in zip(samplings[3:], free[3:], strict=True)]
    expected, _ = tokens(tiny.reference(), EngineCore)
    assert sum(len(one) < 18 for one in expected) == 3
    runner = tiny.gpu_runner(4)
    found, preemptions = tokens(runner, AheadCore if ahead else EngineCore)
    assert found == expected and preemptions > 0
    assert isinstance(runner, AheadRunner)


class LoggingMark:
    """Where the host waited, in the order of the queue."""

    def __init__(self, queue: LoggingQueue) -> None:
        self._queue, self._place = queue, 0

    def set(self) -> None:
        self._queue.places += 1
        self._place = self._queue.places

    def wait(self) -> None:
        self._queue.waited_to = max(self._queue.waited_to, self._place)


class LoggingQueue(HostQueue):
    """The CPU's queue, whose marks are numbered."""

    def __init__(self) -> None:
        super().__init__()
        self.places = self.waited_to = 0

    def mark(self) -> Any:
        return LoggingMark(self)


@pytest.fixture
def logging_queue(monkeypatch: pytest.MonkeyPatch, kernel_device: torch.device) -> LoggingQueue:
    if kernel_device.type != "cpu":
        pytest.skip("the marks of a GPU are its own")
    queue = LoggingQueue()
    monkeypatch.setattr(importlib.import_module("engine.gpu.runner"), "queue_for", lambda device: queue)
    return queue


def test_a_chunk_that_samples_nothing_is_waited_for(case: Callable[..., Case], logging_queue: LoggingQueue) -> None:
    """Its blocks are announced when collect() returns: the device must have come to the launch's end by then."""
    runner = case("llama", num_layers=1).gpu_runner(capture=False)
    sequence = Sequence("a", list(range(40)), SamplingParams(max_tokens=1), [0, 1, 2])
    first = runner.launch([sequence.share(16)])
    end_of_first = logging_queue.places
    sequence.computed = 16
    second = runner.launch([sequence.share(16)])
    assert logging_queue.waited_to < end_of_first
    assert runner.collect(first) == [None]
    assert end_of_first <= logging_queue.waited_to < logging_queue.places
    assert runner.collect(second) == [None]
    assert logging_queue.waited_to == logging_queue.places


def test_a_launch_that_raises_leaves_nothing_on_the_device(
    case: Callable[..., Case], logging_queue: LoggingQueue
) -> None:
    """Its sequences' blocks are freed when the error arrives: what was already given is waited for, and no launch is
    counted."""
    tiny = case("llama", num_layers=1)
    runner = tiny.gpu_runner(capture=False)
    head = tiny.model.kernels.module.lm_head

    def fails(_module: Any, _inputs: Any) -> None:
        raise RuntimeError("out of memory")

    handle = head.register_forward_pre_hook(fails)
    sequence = Sequence("a", [1, 2, 3], SamplingParams(max_tokens=1), [0])
    try:
        for _ in range(3):
            with pytest.raises(RuntimeError, match="out of memory"):
                runner.execute([sequence.share(10)])
            assert logging_queue.waited_to == logging_queue.places > 0
    finally:
        handle.remove()
    again = Sequence("b", [1, 2, 3], SamplingParams(max_tokens=1), [0])
    assert isinstance(runner.execute([again.share(10)])[0], SampledToken)


def test_warming_up_runs_the_largest_steps(case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tokens as a step may have, though no prompt is as long; as many sampled rows; counters of all of them."""
    tiny = case("llama", num_layers=1)
    module = importlib.import_module("engine.gpu.runner")
    runner = module.GpuRunner(tiny.model.kernels.module, tiny.pool(), MAX_LEN, 3, 2 * MAX_LEN + 5)
    seen = []
    launch = runner.launch
    monkeypatch.setattr(
        runner, "launch", lambda steps: (seen.append([len(step.token_ids) for step in steps]), launch(steps))[1]
    )
    assert runner.warm_up(2 * MAX_LEN + 5)
    assert seen == [[MAX_LEN, MAX_LEN], [1, 1, 1], [1, 1, 1]]
    assert len(runner._sampler.counters._rows) == 6
    assert not runner.pool.data[: MAX_LEN // BLOCK_SIZE].count_nonzero()
