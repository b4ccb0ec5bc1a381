"""Decode and prefill steps of a model on this machine, beside what its memory and its matrix products allow.

    python -m bench.engine_step [tiny|small|DIRECTORY] [--dtype bfloat16] [--contexts 128 512] [--batches 1 8 32]
                                [--prompts 128 512] [--kernels auto|torch] [--threads 1]

Times are the least of several: CPU time of one thread, so that a busy machine distorts them little, or wall time with
--threads N; the limits are measured in the same run, with as many threads. A decode step must read the weights once and
each sequence's KV once; a prefill must do its multiplications, at the rate of torch's best product on the model's own
shapes. Steps are whole: packing of the batch, the forward pass, greedy sampling. With the native step a table says
where the time of each goes.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from typing import Any

import torch

from bench.arguments import positive
from bench.limits import ReadRate, least_seconds, read_rate
from bench.reference_models import model_directory
from engine.kernels import CHOICES
from engine.kv_pool import TORCH_DTYPES, KvPool
from engine.model import LoadedModel, load_model
from engine.native.decoder import NativeStep
from engine.runner import TorchRunner
from pdserve.ids import SequenceKey
from pdserve.sampling import SamplingParams
from scheduling.step import SampleRequest, SequenceStep

BLOCK_SIZE = 16
ROWS_OF_RATE = 512
CACHE_BYTES = 1 << 28  # matrices of one shape, together, while their product is timed


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine was measured to do."""

    read: ReadRate
    flops: float  # of products of 512 rows with the model's matrices


def matrix_shapes(config: Any) -> list[tuple[int, int]]:
    """[depth, width] of a layer's products, as a fused step has them."""
    hidden, inner = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or hidden // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return [(hidden, (heads + 2 * kv_heads) * size), (heads * size, hidden), (hidden, 2 * inner), (inner, hidden)]


def measure_machine(config: Any, dtype: torch.dtype) -> Machine:
    """Read memory; multiply 512 rows with matrices of the model's shapes, the better of torch's two products."""
    read = read_rate()
    seconds = operations = 0.0
    for depth, width in matrix_shapes(config):
        rows, matrix = torch.ones(ROWS_OF_RATE, depth, dtype=dtype), torch.ones(width, depth, dtype=dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(matrix, ROWS_OF_RATE)
        plain_s = least_seconds(lambda rows=rows, matrix=matrix: torch.nn.functional.linear(rows, matrix), 5)  # type: ignore[misc]
        packed_s = least_seconds(
            lambda rows=rows, packed=packed: torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], ""),  # type: ignore[misc]
            5,
        )
        seconds += min(plain_s, packed_s)
        operations += 2 * ROWS_OF_RATE * depth * width
    return Machine(read, operations / seconds)


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


class Report:
    """Prints a line per shape of step, and where its time went."""

    def __init__(self, model: LoadedModel, machine: Machine, num_blocks: int, tries: int) -> None:
        self._model, self._machine, self._tries = model, machine, tries
        self._layout = model.kv_layout(BLOCK_SIZE)
        self._runner = TorchRunner(model, KvPool(self._layout, num_blocks))

    def decode(self, batch: int, context: int) -> None:
        steps = decode_steps(batch, context)
        kv_bytes = batch * context * self._layout.block_bytes / BLOCK_SIZE
        floor = (self._model.weight_bytes + kv_bytes) / self._machine.read.best
        self._line(f"decode  batch {batch:4}  context {context:5}", steps, floor, "the memory's speed")

    def prefill(self, length: int) -> None:
        config = self._model.config.get_text_config()
        matrices = sum(depth * width for depth, width in matrix_shapes(config)) * config.num_hidden_layers
        heads_size = matrix_shapes(config)[1][0]
        attention = 2 * heads_size * length * length * config.num_hidden_layers  # two products, half of it masked
        head = 2 * config.hidden_size * self._model.vocab_size
        floor = (2 * matrices * length + attention + head) / self._machine.flops
        self._line(f"prefill {length:4} tokens             ", prefill_step(length), floor, "the products' rate")

    def _line(self, what: str, steps: list[SequenceStep], floor: float, limit: str) -> None:
        seconds = least_seconds(lambda: self._runner.execute(steps), self._tries)
        share = f"floor {floor * 1e3:8.2f} ms  {floor / seconds:4.0%} of {limit}"
        print(f"{what}: {seconds * 1e3:8.2f} ms  {share}", flush=True)
        forward = self._runner.computes
        if isinstance(forward, NativeStep):
            forward.profile()
            self._runner.execute(steps)
            phases = forward.profile()
            total = sum(phases.values())
            print("          " + "  ".join(f"{name} {value / total:.0%}" for name, value in phases.items()))


def main() -> None:
    """Parse, load, measure."""
    parser = argparse.ArgumentParser(description="Time decode and prefill steps beside the machine's limits.")
    parser.add_argument("model", nargs="?", default="tiny", help="tiny, small, or a model directory")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--contexts", type=positive, nargs="+", default=[128, 512], help="positions computed per sequence"
    )
    parser.add_argument("--batches", type=positive, nargs="+", default=[1, 8, 32], help="sequences")
    parser.add_argument("--prompts", type=positive, nargs="+", default=[128, 512], help="tokens of a prefill")
    parser.add_argument("--tries", type=positive, default=9)
    parser.add_argument("--kernels", choices=CHOICES, default="auto")
    parser.add_argument("--threads", type=positive, default=1)
    args = parser.parse_args()
    with model_directory(args.model) as directory:
        model = load_model(directory, dtype=args.dtype, kernels=args.kernels, num_threads=args.threads)
    torch.set_num_threads(args.threads)  # for the limits; the native step has its own
    machine = measure_machine(model.config.get_text_config(), TORCH_DTYPES[model.dtype])
    print(f"{model.config.model_type}, {model.dtype}, computed by: {model.kernels.name}")
    print(f"weights read per step: {model.weight_bytes / 1e6:,.1f} MB; load {os.getloadavg()[0]:.1f}")
    print(f"machine: reads {machine.read}; multiplies {machine.flops / 1e9:.0f} GFLOP/s")
    shapes = [(batch, context) for context in args.contexts for batch in args.batches if context < model.max_model_len]
    longest = max([batch * (context + BLOCK_SIZE) for batch, context in shapes] + args.prompts)
    report = Report(model, machine, -(-longest // BLOCK_SIZE) + len(args.batches), args.tries)
    for batch, context in shapes:
        report.decode(batch, context)
    for length in args.prompts:
        report.prefill(length)


if __name__ == "__main__":
    main()
