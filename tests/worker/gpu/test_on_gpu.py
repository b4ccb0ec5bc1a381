"""What only a GPU can show of a worker: its pool in its share of the card, two workers on it, handles across processes.

    python -m pytest -m gpu tests/worker/gpu

NOT YET RUN ON A GPU.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu_split
from pdserve.clock import MonotonicClock
from pdserve.config import WorkerConfig, WorkerStart
from pdserve.exit import StartError
from pdserve.ids import SequenceKey
from pdserve.sampling import SamplingParams
from pdserve.v1 import worker_pb2 as pb
from worker.gpu_memory import OUTSIDE_BYTES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
SETTINGS: dict[str, Any] = {
    "block_size": 16, "max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 128,
    "dtype": "float32", "threads": 1,
}  # fmt: skip


def build(model: Path, share: float) -> Any:
    config = WorkerConfig(device="cuda", gpu_memory_utilization=share, **SETTINGS)
    start = WorkerStart("decode-0", "decode", str(model), "cuda:0", "secret", "127.0.0.1:0", config)
    return importlib.import_module("worker.build_gpu").build_gpu(start, MonotonicClock())


def test_a_worker_stays_within_its_share(tiny_model: Callable[[str], Path]) -> None:
    """The pool takes what is left of it, and nothing of the profile stays; a share that is too small is told."""
    total = torch.cuda.get_device_properties(0).total_memory
    built = build(tiny_model("llama"), 0.2)
    assert built.gpu.blocks.is_cuda and built.gpu.blocks.nbytes > total // 20
    assert torch.cuda.memory_reserved() + OUTSIDE_BYTES <= 1.02 * 0.2 * total
    assert not built.gpu.blocks[:8].count_nonzero()
    del built
    with pytest.raises(StartError, match="raise --gpu-memory-utilization"):
        build(tiny_model("llama"), 0.001)


def test_a_split_on_one_card_gives_the_tokens_of_one_engine(
    tiny_model: Callable[[str], Path], launch_workers: Callable[..., AbstractAsyncContextManager[Any]]
) -> None:
    """Through staging memory, both workers in this process."""
    prompts = [list(range(3, 3 + length)) for length in (1, 17, 64, 100)]
    sampling = SamplingParams(max_tokens=8)

    async def main() -> None:
        settings = SETTINGS | {"kv_bytes": 8 << 20, "model": tiny_model("llama")}
        async with launch_workers(device="cuda:0", transport="staged", **settings) as cluster:
            (p,), (d,) = cluster.prefill, cluster.decode
            for n, ids in enumerate(prompts):
                cluster.split(SequenceKey(f"split-{n}"), p, d, ids, sampling)
                await d.until(lambda n=n: SequenceKey(f"split-{n}") in d.finished or d.failed or p.failed)
                d.submit(SequenceKey(f"alone-{n}"), pb.SEQUENCE_MODE_FULL, ids, sampling)
                await d.until(lambda n=n: SequenceKey(f"alone-{n}") in d.finished or d.failed)
                assert not d.failed and not p.failed
                split, alone = SequenceKey(f"split-{n}"), SequenceKey(f"alone-{n}")
                assert p.tokens[split] | d.tokens[split] == d.tokens[alone]
            await cluster.settled()

    asyncio.run(main())


def test_two_processes_on_one_card_hand_over_by_handle(
    tiny_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """`auto` takes cuda_ipc; and staged, asked for."""
    arguments = [
        "--model", str(tiny_model("llama")), "--dtype", "float32", "--transports", "auto", "staged", "--requests", "8",
        "--concurrency", "1", "--prompt-tokens", "90", "--output-tokens", "8", "--kv-bytes", str(8 << 20),
    ]  # fmt: skip
    assert gpu_split.main(arguments) == 0
    rows = capsys.readouterr().out.splitlines()
    assert any(row.startswith("| auto (cuda_ipc) |") and row.endswith("| 8/8 |") for row in rows)
    assert any(row.startswith("| staged (staged) |") and row.endswith("| 8/8 |") for row in rows)
