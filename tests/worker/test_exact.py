"""The keystone: tokens of a split sequence equal those of one engine bit for bit, in every architecture.

That one engine equals `transformers` is shown in tests/engine.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
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
