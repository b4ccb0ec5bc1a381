"""A worker with a GPU, built and run whole on the CPU: the card is a fake, kernels are interpreted, pools host tensors.

What a GPU alone can show is in tests marked `gpu`.
"""

from __future__ import annotations

import asyncio
import importlib
import random
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kv_transfer.transports import cuda_ipc
from pdserve.clock import MonotonicClock
from pdserve.config import WorkerConfig, WorkerStart
from pdserve.exit import ExitCode, StartError
from pdserve.ids import SequenceKey
from pdserve.sampling import SamplingParams
from pdserve.settings import ConfigError
from pdserve.v1 import worker_pb2 as pb
from worker.gpu_memory import OUTSIDE_BYTES

Launch = Callable[..., AbstractAsyncContextManager[Any]]
CONFIG = WorkerConfig(
    device="cuda", dtype="float32", max_num_seqs=2, max_num_batched_tokens=32, threads=1, block_size=8,
    gpu_memory_utilization=0.5, max_model_len=64,
)  # fmt: skip


def start(model: Path, **changes: Any) -> WorkerStart:
    config = replace(CONFIG, **changes)
    return WorkerStart("decode-0", "decode", str(model), "cuda:0", "secret", "127.0.0.1:0", config)


def build(card: Any, started: WorkerStart) -> Any:
    """By name: where Triton is missing this file is still collected."""
    return importlib.import_module("worker.build_gpu").build_on(card, started, MonotonicClock())


def test_the_pool_takes_what_the_share_leaves(fake_card: Any, tiny_model: Callable[[str], Path]) -> None:
    """Blocks on the card, generations on the host, the profile's memory given back before the pool is made."""
    card = fake_card(torch.device("cuda", 0), total_bytes=1 << 31, taken_bytes=1 << 27)
    built = build(card, start(tiny_model("llama")))
    profile_pool = 4 * built.layout.block_bytes  # a step's 32 tokens
    left = (1 << 30) - ((1 << 27) - profile_pool) - OUTSIDE_BYTES
    assert built.memory.num_blocks == left // (built.layout.block_bytes + 8)
    assert card.given_back == 1
    assert built.gpu.blocks.shape == (built.memory.num_blocks, built.layout.block_elements)
    assert built.gpu.gpu_uuid == "GPU-0" and built.gpu.reaches("GPU-0")
    assert built.memory.fd is not None  # a peer of this host maps the generations
    assert not built.gpu.blocks[:8].count_nonzero()


def test_kv_bytes_that_are_given_need_no_profile(fake_card: Any, tiny_model: Callable[[str], Path]) -> None:
    """They are taken as they are, if the card has them free."""
    card = fake_card(torch.device("cuda", 0))
    built = build(card, start(tiny_model("llama"), kv_bytes=1 << 20))
    assert built.memory.num_blocks == (1 << 20) // (built.layout.block_bytes + 8) and card.given_back == 0
    card.free = 1 << 19
    with pytest.raises(StartError, match=r"cuda:0 has 0\.00 GiB free"):
        build(card, start(tiny_model("llama"), kv_bytes=1 << 20))
    with pytest.raises(ConfigError, match="raise --kv-bytes or lower --max-model-len"):
        build(fake_card(torch.device("cuda", 0)), start(tiny_model("llama"), kv_bytes=1 << 10))


def test_a_card_that_is_too_small_is_told(
    fake_card: Any, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the budget, and by torch's own error at whatever allocates."""
    with pytest.raises(StartError, match="raise --gpu-memory-utilization, or lower --max-model-len") as raised:
        build(fake_card(torch.device("cuda", 0), 1 << 31, (1 << 30) - OUTSIDE_BYTES), start(tiny_model("llama")))
    assert raised.value.exit_code is ExitCode.ENVIRONMENT

    def exhausted(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    module = importlib.import_module("worker.build_gpu")
    for name, doing in (("KvPool", "the largest step"), ("load_model", "loading the weights")):
        monkeypatch.setattr(module, name, exhausted)
        with pytest.raises(StartError, match=f"^{doing} takes more memory than there is: cuda:0 has"):
            build(fake_card(torch.device("cuda", 0)), start(tiny_model("llama")))


class OneProcessSharing:
    """In place of CUDA's handles: pools of this process by number."""

    pools: list[torch.Tensor] = []  # noqa: RUF012 - of all instances

    def export(self, pool: torch.Tensor) -> bytes:
        self.pools.append(pool.view(torch.uint8))
        return b"%d" % (len(self.pools) - 1)

    def open(self, packed: bytes) -> torch.Tensor:
        return self.pools[int(packed)]


def prompts() -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(256) for _ in range(length)] for length in (1, 9, 40, 41)]


SAMPLINGS = [SamplingParams(max_tokens=5), SamplingParams(max_tokens=5, temperature=0.9, top_p=0.9, seed=7)]


async def split_tokens(cluster: Any) -> tuple[list[list[int]], set[str]]:
    """Each prompt with each sampling through prefill and decode; the tokens, and which transports moved KV."""
    (p,), (d,) = cluster.prefill, cluster.decode
    keys = []
    for i, ids in enumerate(prompts()):
        for j, sampling in enumerate(SAMPLINGS):
            keys.append(SequenceKey(f"{i}-{j}"))
            cluster.split(keys[-1], p, d, ids, sampling)
    await d.until(lambda: len(d.finished) == len(keys) or d.failed or p.failed, 60.0)
    assert not d.failed and not p.failed
    await cluster.settled()
    merged = [p.tokens[key] | d.tokens[key] for key in keys]
    used = {sample.labels["transport"] for sample in d.status.samples if "transport" in sample.labels}
    return [[tokens[i] for i in range(len(tokens))] for tokens in merged], used


@pytest.mark.parametrize("transport", ["auto", "staged"])
def test_a_split_over_gpu_workers_gives_the_tokens_of_one_cpu_engine(
    fake_card: Any, tiny_model: Callable[[str], Path], launch_workers: Launch, monkeypatch: pytest.MonkeyPatch,
    transport: str,
) -> None:  # fmt: skip
    """Two GPU workers on one card: KV by its handle (auto), or through staging memory; prompts in chunks."""
    monkeypatch.setattr(importlib.import_module("worker.build_gpu"), "CudaCard", fake_card)
    monkeypatch.setattr(cuda_ipc, "CudaPoolSharing", OneProcessSharing)
    runner, one_at_a_time = importlib.import_module("engine.gpu.runner").GpuRunner, threading.Lock()
    launch = runner.launch

    def launch_alone(self: Any, steps: Any) -> Any:
        with one_at_a_time:  # Triton's interpreter knows one kernel at a time, and here are two engines' threads
            return launch(self, steps)

    monkeypatch.setattr(runner, "launch", launch_alone)
    settings = {
        "model": tiny_model("llama"), "block_size": 8, "max_num_seqs": 2, "max_num_batched_tokens": 32,
        "max_model_len": 64, "kv_bytes": 1 << 20,
    }  # fmt: skip

    async def on_gpus() -> tuple[list[list[int]], set[str]]:
        async with launch_workers(device="cuda:0", transport=transport, **settings) as cluster:
            return await split_tokens(cluster)

    async def on_cpu() -> list[list[int]]:
        async with launch_workers(prefill=0, **settings) as cluster:
            (d,) = cluster.decode
            keys = [SequenceKey(f"{i}-{j}") for i in range(len(prompts())) for j in range(len(SAMPLINGS))]
            for key, (ids, sampling) in zip(keys, [(i, s) for i in prompts() for s in SAMPLINGS], strict=True):
                d.submit(key, pb.SEQUENCE_MODE_FULL, ids, sampling)
            await d.until(lambda: len(d.finished) == len(keys), 60.0)
            return [[d.tokens[key][i] for i in range(len(d.tokens[key]))] for key in keys]

    found, used = asyncio.run(on_gpus())
    assert found == asyncio.run(on_cpu())
    assert used == {"cuda_ipc" if transport == "auto" else "staged"}
    assert len({tuple(tokens) for tokens in found}) > len(found) // 2, "the model says one thing only"
