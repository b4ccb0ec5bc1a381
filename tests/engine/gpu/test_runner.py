"""The GPU runner whole, on CPU tensors: kernels interpreted, graphs as plain calls. Tokens equal TorchRunner's."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.attention import ReferenceAttention
from engine.kv_pool import KvPool
from engine.model import LoadedModel, load_model
from engine.runner import TorchRunner
from pdserve.errors import ServingError
from pdserve.ids import SequenceKey
from pdserve.sampling import SampledToken, SamplingParams
from scheduling.step import SampleRequest, SequenceStep

pytestmark = pytest.mark.usefixtures("kernel_device")

BLOCK_SIZE = 16
MAX_LEN = 256
MAX_SEQS = 6


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

    def gpu_runner(self, capture: bool = True) -> Any:
        module = importlib.import_module("engine.gpu.runner")
        runner = module.GpuRunner(self.model.kernels.module, self.pool(), MAX_LEN, MAX_SEQS, 512)
        assert runner.capture() if capture else True
        return runner

    def run(self, runner: Any, samplings: list[SamplingParams], seed: int, longest: int = 60) -> list[Sequence]:
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
            max_tokens=chance.randint(3, 9),
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
