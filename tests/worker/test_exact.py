"""The keystone: tokens of a split sequence equal those of one engine bit for bit, in every architecture.

That one engine equals `transformers` whatever the company is shown in tests/engine.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from deploy.models.make_model import make_model
from deploy.models.model_spec import ModelSpec
from pdserve.ids import SequenceKey
from pdserve.sampling import SamplingParams
from pdserve.v1 import worker_pb2 as pb

Launch = Callable[..., AbstractAsyncContextManager[Any]]
ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "opt", "gpt2", "mixtral")
GREEDY = SamplingParams(max_tokens=12)
SEEDED = SamplingParams(max_tokens=12, temperature=0.9, top_p=0.95, top_k=50, seed=11, repetition_penalty=1.1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    transformers_logging.disable_progress_bar()
    made: dict[str, Path] = {}

    def directory(arch: str) -> Path:
        if arch not in made:
            made[arch] = tmp_path_factory.mktemp(arch)
            sliding = 16 if arch in ("mistral", "gemma2", "gemma3") else None
            make_model(
                made[arch],
                ModelSpec(arch=arch, vocab_size=512, max_position_embeddings=512, sliding_window=sliding),
            )
        return made[arch]

    return directory


def all_tokens(wires: list[Any], key: SequenceKey) -> list[int]:
    merged = {index: token for wire in wires for index, token in wire.tokens.get(key, {}).items()}
    assert sorted(merged) == list(range(len(merged)))
    return [merged[index] for index in range(len(merged))]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_split_equals_one_engine_whatever_the_company(
    launch_workers: Launch, checkpoint: Callable[[str], Path], arch: str
) -> None:
    async def run() -> None:
        rng = random.Random(arch)
        model = checkpoint(arch)
        prompts = [[rng.randrange(512) for _ in range(n)] for n in (1, 3, 4, 5, 16, 31, 150)]
        alone: dict[tuple[int, bool], list[int]] = {}
        async with launch_workers(0, 1, model=model, block_size=16, enable_prefix_caching=False) as one:
            (engine,) = one.decode
            for i, ids in enumerate(prompts):
                for greedy in (True, False):
                    key = SequenceKey(f"{i}-{greedy}")
                    engine.submit(key, pb.SEQUENCE_MODE_FULL, ids, GREEDY if greedy else SEEDED)
                    await engine.until(lambda key=key: key in engine.finished, 60.0)  # type: ignore[misc]
                    alone[i, greedy] = all_tokens([engine], key)
        shape = {"block_size": rng.choice([4, 8]), "max_num_batched_tokens": rng.choice([32, 64])}
        async with launch_workers(1, 1, model=model, **shape) as split:
            (p,), (d,) = split.prefill, split.decode
            order = list(alone) * 2  # the second time over a warm prefix cache
            rng.shuffle(order)
            for n, (i, greedy) in enumerate(order):
                split.split(SequenceKey(f"{i}-{greedy}", n + 1), p, d, prompts[i], GREEDY if greedy else SEEDED)
            await d.until(lambda: len(d.finished) + len(p.finished) == len(order) or d.failed or p.failed, 90.0)
            assert not d.failed and not p.failed
            for n, (i, greedy) in enumerate(order):
                tokens = all_tokens([p, d], SequenceKey(f"{i}-{greedy}", n + 1))
                assert tokens == alone[i, greedy], f"prompt of {len(prompts[i])} tokens, greedy {greedy}"
            await split.settled()
        assert len({tuple(tokens) for tokens in alone.values()}) > len(alone) // 2, "the model says one thing only"

    asyncio.run(run())


LENGTHS = (1, 33, 700, 2000)
OUTPUT_TOKENS = 10
TIE = 1e-4  # two of the oracle's logits that are closer may be ordered either way


def oracle_tokens(directory: Path, prompts: list[list[int]]) -> list[list[tuple[int, float]]]:
    """transformers' greedy tokens after each prompt, each with the gap between its two best logits."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    found = []
    for ids in prompts:
        out = model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=OUTPUT_TOKENS, min_new_tokens=OUTPUT_TOKENS, do_sample=False, eos_token_id=None,
            pad_token_id=0, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        best = [logits[0].topk(2).values for logits in out.logits]
        tokens = out.sequences[0, len(ids) :].tolist()
        found.append([(token, float(b[0] - b[1])) for token, b in zip(tokens, best, strict=True)])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_long_prompts_through_the_split_equal_transformers(launch_workers: Launch, tmp_path: Path, arch: str) -> None:
    """Up to 2,000 tokens, sliding windows of 128, chunks of 96: split, one engine and the oracle agree."""
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    sliding = 128 if arch in ("mistral", "gemma2", "gemma3") else None
    model = tmp_path / arch
    spec = ModelSpec(arch=arch, vocab_size=512, max_position_embeddings=2304, sliding_window=sliding)
    make_model(model, spec)
    rng = random.Random(arch)
    prompts = [[rng.randrange(512) for _ in range(n)] for n in LENGTHS]
    keys = [SequenceKey(f"{n} tokens") for n in LENGTHS]
    greedy = SamplingParams(max_tokens=OUTPUT_TOKENS)

    async def run(prefill: int, block_size: int, budget: int) -> list[list[int]]:
        shape = {"block_size": block_size, "max_num_batched_tokens": budget, "kv_bytes": 48 << 20}
        async with launch_workers(prefill, 1, model=model, max_model_len=2304, **shape) as cluster:
            (d,) = cluster.decode
            for key, ids in zip(keys, prompts, strict=True):
                if prefill:
                    cluster.split(key, cluster.prefill[0], d, ids, greedy)
                else:
                    d.submit(key, pb.SEQUENCE_MODE_FULL, ids, greedy)
            await d.until(lambda: len(d.finished) == len(keys) or d.failed, 120.0)
            assert not d.failed
            await cluster.settled()
            return [all_tokens(cluster.wires, key) for key in keys]

    split = asyncio.run(run(1, 8, 96))
    assert split == asyncio.run(run(0, 16, 512))
    for ours, theirs in zip(split, oracle_tokens(model, prompts), strict=True):
        difference = next((gap for a, (b, gap) in zip(ours, theirs, strict=True) if a != b), None)
        assert difference is None or difference < TIE
