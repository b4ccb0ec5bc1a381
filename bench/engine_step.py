"""Decode and prefill steps of a model on this machine, beside what its memory and its matrix products allow.

    python -m bench.engine_step [MODEL] [--dtype float32] [--contexts 128 1024] [--batches 1 8 32]

Without MODEL a small random Llama is made. Times are the least of several, process time of one thread, so that a busy
machine distorts them little; the floors are measured in the same run. A decode step must read the weights once and
each sequence's KV once; a prefill must do its multiplications.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from deploy.models.make_model import make_model
from deploy.models.model_spec import ModelSpec
from engine.kv_pool import TORCH_DTYPES, KvPool
from engine.model import LoadedModel, load_model
from engine.runner import TorchRunner
from pdserve.ids import SequenceKey
from pdserve.sampling import SamplingParams
from scheduling.step import SampleRequest, SequenceStep

BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Machine:
    """What one thread of this machine was measured to do."""

    read_bytes_per_s: float
    flops: float  # of a product of 512 rows in the model's dtype


def least_seconds(act: Callable[[], object], tries: int) -> float:
    """Process time of the quickest of some tries, after one that does not count."""
    act()
    seconds = []
    for _ in range(tries):
        start = time.process_time()
        act()
        seconds.append(time.process_time() - start)
    return min(seconds)


def measure_machine(dtype: torch.dtype) -> Machine:
    """Read 256 MiB; multiply [512, 1024] by [1024, 4096]."""
    data = torch.ones(1 << 26)
    read_s = least_seconds(data.sum, 5)
    rows, matrix = torch.ones(512, 1024, dtype=dtype), torch.ones(4096, 1024, dtype=dtype)
    product_s = least_seconds(lambda: torch.nn.functional.linear(rows, matrix), 5)
    return Machine(data.numel() * 4 / read_s, 2 * 512 * 1024 * 4096 / product_s)


def decode_steps(batch: int, context: int) -> list[SequenceStep]:
    """One token each for `batch` sequences with `context` positions computed."""
    blocks = -(-(context + 1) // BLOCK_SIZE)
    order = torch.randperm(batch * blocks, generator=torch.Generator().manual_seed(0)).view(batch, blocks)
    tokens = [7] * (context + 1)
    request = SampleRequest(SamplingParams(max_tokens=1), tokens, context)
    return [
        SequenceStep(SequenceKey(str(index)), [7], context, order[index].tolist(), request) for index in range(batch)
    ]


def prefill_step(length: int) -> list[SequenceStep]:
    """One prompt from its start."""
    tokens = [index % 251 for index in range(length)]
    request = SampleRequest(SamplingParams(max_tokens=1), tokens, length)
    return [SequenceStep(SequenceKey("prompt"), tokens, 0, list(range(-(-length // BLOCK_SIZE))), request)]


def report(model: LoadedModel, contexts: list[int], batches: list[int], prompts: list[int], tries: int) -> None:
    """Print a line per shape."""
    weight_bytes = model.weight_bytes
    machine = measure_machine(TORCH_DTYPES[model.dtype])
    layout = model.kv_layout(BLOCK_SIZE)
    token_bytes = layout.block_bytes / BLOCK_SIZE
    name = f"{model.config.model_type}, {model.dtype}, {model.kernels.name}"
    print(f"{name}, {weight_bytes / 1e6:,.1f} MB of weights read per step")
    print(f"machine: reads {machine.read_bytes_per_s / 1e9:.1f} GB/s, multiplies {machine.flops / 1e9:.0f} GFLOP/s")
    longest = max([batch * (context + BLOCK_SIZE) for batch in batches for context in contexts] + prompts)
    runner = TorchRunner(model, KvPool(layout, -(-longest // BLOCK_SIZE) + len(batches)))
    for context in (context for context in contexts if context < model.max_model_len):
        for batch in batches:
            steps = decode_steps(batch, context)
            seconds = least_seconds(lambda steps=steps: runner.execute(steps), tries)  # type: ignore[misc]
            floor = (weight_bytes + batch * context * token_bytes) / machine.read_bytes_per_s
            print(
                f"decode  batch {batch:3}  context {context:5}: {seconds * 1e3:8.2f} ms"
                f"  floor {floor * 1e3:8.2f} ms  x{seconds / floor:.1f}"
            )
    matrices = weight_bytes / TORCH_DTYPES[model.dtype].itemsize
    for length in (length for length in prompts if length <= model.max_model_len):
        steps = prefill_step(length)
        seconds = least_seconds(lambda steps=steps: runner.execute(steps), max(2, tries // 4))  # type: ignore[misc]
        floor = 2 * matrices * length / machine.flops
        print(
            f"prefill {length:5} tokens: {seconds * 1e3:8.1f} ms  {length / seconds:8,.0f} tokens/s"
            f"  floor {floor * 1e3:8.1f} ms  x{seconds / floor:.1f}"
        )


def main() -> None:
    """Parse, load, measure."""
    parser = argparse.ArgumentParser(description="Time decode and prefill steps beside the machine's limits.")
    parser.add_argument("model", nargs="?", type=Path, help="model directory; a small one is made without it")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 1024], help="positions computed per sequence")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="sequences")
    parser.add_argument("--prompts", type=int, nargs="+", default=[64, 512], help="tokens of a prefill")
    parser.add_argument("--tries", type=int, default=12)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        source = args.model
        if source is None:
            source = Path(directory)
            make_model(source, ModelSpec(arch="llama", num_layers=8, hidden_size=512, vocab_size=4096))
        report(load_model(source, dtype=args.dtype), args.contexts, args.batches, args.prompts, args.tries)


if __name__ == "__main__":
    main()
