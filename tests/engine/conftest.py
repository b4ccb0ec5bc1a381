"""A tiny model of each family, and a driver that steps a runner the way a scheduler would, only less wisely."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from deploy.models.make_model import make_model
from deploy.models.model_spec import ModelSpec
from engine.batch import StepBatch
from engine.kv_pool import KvPool
from engine.model import LoadedModel, load_model
from engine.runner import TorchRunner
from pdserve.errors import ServingError
from pdserve.ids import SequenceKey
from pdserve.sampling import SampledToken, SamplingParams
from scheduling.step import SampleRequest, SequenceStep

LoadTiny = Callable[..., LoadedModel]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Directory of a made model; the same arguments give the same directory."""
    made: dict[ModelSpec, Path] = {}

    def directory(arch: str = "llama", **fields: Any) -> Path:
        spec = ModelSpec(arch=arch, **{"vocab_size": 512, "max_position_embeddings": 256, **fields})
        if spec not in made:
            made[spec] = tmp_path_factory.mktemp(arch)
            make_model(made[spec], spec)
        return made[spec]

    return directory


@pytest.fixture(scope="session")
def load_tiny(tiny_dir: Callable[..., Path]) -> LoadTiny:
    """A made model, loaded; kept for the session."""
    loaded: dict[tuple[Path, str], LoadedModel] = {}

    def load(arch: str = "llama", kernels: str = "auto", **fields: Any) -> LoadedModel:
        key = tiny_dir(arch, **fields), kernels
        if key not in loaded:
            loaded[key] = load_model(key[0], kernels=kernels)
        return loaded[key]

    return load


@pytest.fixture(scope="session")
def oracle_logits(tiny_dir: Callable[..., Path]) -> Callable[..., Tensor]:
    """[T, V]: transformers' own eager logits for a whole sequence, on the same weights."""
    modules: dict[Path, Any] = {}

    def logits(token_ids: Sequence[int], arch: str = "llama", **fields: Any) -> Tensor:
        directory = tiny_dir(arch, **fields)
        if directory not in modules:
            modules[directory] = AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32, attn_implementation="eager"
            )
        with torch.inference_mode():
            out: Tensor = modules[directory](torch.tensor([list(token_ids)]), use_cache=False).logits[0]
        return out

    return logits


@dataclass
class Running:
    """One sequence of the driver."""

    key: SequenceKey
    prompt: list[int]
    sampling: SamplingParams
    chunk: int  # prompt tokens per step
    block_ids: list[int]
    tokens: list[int] = field(default_factory=list)  # prompt and output
    computed: int = 0
    logits: list[Tensor] = field(default_factory=list)  # one row per sampled token
    sampled: list[SampledToken] = field(default_factory=list)
    error: ServingError | None = None
    kv: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # per layer, when finished

    @property
    def outputs(self) -> list[int]:
        return self.tokens[len(self.prompt) :]

    @property
    def finished(self) -> bool:
        return self.error is not None or len(self.outputs) >= self.sampling.max_tokens


class RecordingRunner(TorchRunner):
    """Keeps the last step's logits."""

    last_logits: Tensor

    def forward(self, batch: StepBatch) -> Tensor:
        self.last_logits = super().forward(batch)
        return self.last_logits


class Driver:
    """Runs sequences to their end in mixed steps, over shuffled blocks; freed blocks are filled with not-a-number."""

    def __init__(self, model: LoadedModel, block_size: int = 16, seed: int = 0, num_tokens: int = 8192) -> None:
        self.random = random.Random(seed)
        num_blocks = num_tokens // block_size
        self.pool = KvPool(model.kv_layout(block_size), num_blocks)
        self.pool.data.fill_(float("nan"))
        self.runner = RecordingRunner(model, self.pool)
        self.free = list(range(num_blocks))
        self.random.shuffle(self.free)
        self.running: list[Running] = []
        self.count = 0

    def add(self, prompt: Sequence[int], sampling: SamplingParams | int, chunk: int = 1 << 20) -> Running:
        """Queue a sequence; an int is the number of greedy tokens."""
        params = SamplingParams(max_tokens=sampling) if isinstance(sampling, int) else sampling
        num_blocks = -(-(len(prompt) + params.max_tokens) // self.pool.layout.block_size)
        blocks = [self.free.pop() for _ in range(num_blocks)]
        self.count += 1
        key = SequenceKey(f"sequence-{self.count}")
        sequence = Running(key, list(prompt), params, chunk, blocks, tokens=list(prompt))
        self.running.append(sequence)
        return sequence

    def add_neighbours(self, count: int, vocab_size: int) -> None:
        """Random prompts with random chunks."""
        for _ in range(count):
            prompt = [self.random.randrange(vocab_size) for _ in range(self.random.randint(1, 70))]
            self.add(prompt, self.random.randint(1, 12), chunk=self.random.choice([3, 16, 40, 100]))

    def step(self) -> None:
        """One step with every sequence that runs, in random order."""
        chosen = self.running[:]
        self.random.shuffle(chosen)
        steps = [self._share(sequence) for sequence in chosen]
        results = self.runner.execute(steps)
        assert len(results) == len(steps)
        row = 0
        for sequence, step, result in zip(chosen, steps, results, strict=True):
            sequence.computed = step.end
            assert (result is None) == (step.sample is None)
            if step.sample is None:
                continue
            sequence.logits.append(self.runner.last_logits[row].clone())
            row += 1
            if isinstance(result, ServingError):
                sequence.error = result
            else:
                assert isinstance(result, SampledToken)
                sequence.sampled.append(result)
                sequence.tokens.append(result.token_id)
            if sequence.finished:
                self._finish(sequence)

    def run(self, until: Running | None = None) -> None:
        """Step until one sequence, or all, are finished."""
        while self.running and not (until and until.finished):
            self.step()

    def _share(self, sequence: Running) -> SequenceStep:
        start = sequence.computed
        end = min(len(sequence.tokens), start + sequence.chunk)
        complete = end == len(sequence.tokens)
        request = SampleRequest(sequence.sampling, sequence.tokens, len(sequence.prompt)) if complete else None
        return SequenceStep(sequence.key, sequence.tokens[start:end], start, sequence.block_ids, request)

    def _finish(self, sequence: Running) -> None:
        table = torch.tensor(sequence.block_ids)
        layers = range(len(self.pool.layout.layers))
        sequence.kv = [self.pool.gather(layer, table, sequence.computed) for layer in layers]
        self.running.remove(sequence)
        self.pool.data[table] = float("nan")
        self.free += sequence.block_ids
        self.random.shuffle(self.free)


@pytest.fixture
def driver() -> type[Driver]:
    """The driver's class: tests here cannot import each other."""
    return Driver


@pytest.fixture
def random_prompt() -> Callable[..., list[int]]:
    """Seeded random token ids."""

    def prompt(length: int, vocab_size: int = 512, seed: int = 0) -> list[int]:
        generator = random.Random(seed * 1000 + length)
        return [generator.randrange(vocab_size) for _ in range(length)]

    return prompt
