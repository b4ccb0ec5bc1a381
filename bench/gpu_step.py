"""Decode and prefill steps on one GPU beside what it was measured to do. NOT YET RUN ON HARDWARE.

    python -m bench.gpu_step [--layers 32] [--batches 1 8 32 128] [--contexts 512 4096] [--prompts 512 2048 8192]

The model is random, 8B-shaped, and made on the device. Ceilings are measured in the same run: a copy of 2 GiB, a
product of 8192. A decode step must read the weights once and every sequence's KV once; a prefill must do its
multiplications. Times are of whole steps as an engine sees them, from `execute` to the tokens on the host, the least of
several; `pipelined` is the time per step when the next is launched before the last is collected. It needs no Ray, no
HTTP and no file.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.arguments import positive
from bench.gpu_model import Card, RandomModel, Shape, measure_card, random_model
from engine.kv_pool import KvPool
from pdserve.ids import SequenceKey
from pdserve.kv_layout import KvLayout
from pdserve.sampling import SamplingParams
from scheduling.step import PENDING, SampleRequest, SequenceStep

BLOCK_SIZE = 16
SPARE_BYTES = 8 << 30  # for what a step allocates, the graphs' pool and scratch


class Decodes:
    """A batch that decodes for ever at about one context length: one new token per step, blocks given in advance."""

    def __init__(self, batch: int, context: int, room: int) -> None:
        """`room`: steps that may be taken."""
        blocks = -(-(context + room) // BLOCK_SIZE)
        order = torch.randperm(batch * blocks, generator=torch.Generator().manual_seed(0)).view(batch, blocks).tolist()
        self.tokens = [[7] * (context + 1) for _ in range(batch)]
        params = SamplingParams(max_tokens=room)
        self.steps = [
            SequenceStep(
                SequenceKey(f"{batch}-{context}-{i}"), [7], context, order[i], SampleRequest(params, tokens, 1)
            )
            for i, tokens in enumerate(self.tokens)
        ]

    def advance(self) -> list[SequenceStep]:
        """The next step, whose tokens only the device knows."""
        for step, tokens in zip(self.steps, self.tokens, strict=True):
            step.start += 1
            step.token_ids = [PENDING]
            tokens.append(PENDING)
        return self.steps


def least_wall_seconds(act: Callable[[], object], tries: int) -> float:
    """Of the quickest of some tries, after two that do not count."""
    seconds = []
    for turn in range(tries + 2):
        start = time.perf_counter()
        act()
        if turn >= 2:
            seconds.append(time.perf_counter() - start)
    return min(seconds)


def pipelined_seconds(runner: Any, decodes: Decodes, steps: int) -> float:
    """Per step, with two in flight."""
    before = runner.launch(decodes.advance())
    start = time.perf_counter()
    for _ in range(steps):
        launched = runner.launch(decodes.advance())
        runner.collect(before)
        before = launched
    seconds = (time.perf_counter() - start) / steps
    runner.collect(before)
    return seconds


def prefill_step(length: int) -> list[SequenceStep]:
    """One prompt from its start."""
    tokens = [index % 251 for index in range(length)]
    request = SampleRequest(SamplingParams(max_tokens=1), tokens, length)
    return [SequenceStep(SequenceKey(f"prompt-{length}"), tokens, 0, list(range(-(-length // BLOCK_SIZE))), request)]


def room_of(args: argparse.Namespace) -> int:
    """Steps that one batch may take."""
    return int(2 * args.tries + 3 * args.steps + 16)


def blocks_of(context: int, args: argparse.Namespace) -> int:
    """Of one sequence."""
    return -(-(context + room_of(args)) // BLOCK_SIZE)


def report_decode(
    model: RandomModel, layout: KvLayout, card: Card, make_runner: Callable[[bool], Any], args: argparse.Namespace
) -> None:
    """A line per batch and context: eager, by graph, pipelined, and the floor."""
    token_bytes = layout.block_bytes / BLOCK_SIZE
    eager, graphs = make_runner(False), make_runner(True)
    for context in args.contexts:
        for batch in args.batches:
            if batch * blocks_of(context, args) > eager.pool.num_blocks:
                print(f"decode  batch {batch:4}  context {context:6}: its KV does not fit this card")
                continue
            floor = (model.weight_bytes + batch * context * token_bytes) / card.copy_bytes_per_s
            room = room_of(args)
            found = []
            for runner in (eager, graphs):
                decodes = Decodes(batch, context, room)
                found.append(least_wall_seconds(lambda r=runner, d=decodes: r.execute(d.advance()), args.tries))  # type: ignore[misc]
            found.append(pipelined_seconds(graphs, Decodes(batch, context, room), args.steps))
            shown = "  ".join(
                f"{name} {s * 1e3:7.2f} ms" for name, s in zip(("eager", "graph", "pipelined"), found, strict=True)
            )
            best = min(found)
            rate = floor / best * card.copy_bytes_per_s
            print(
                f"decode  batch {batch:4}  context {context:6}: {shown}  floor {floor * 1e3:7.2f} ms"
                f"  {rate / 1e12:.2f} TB/s, {floor / best:.0%} of the copy's",
                flush=True,
            )


def report_prefill(
    model: RandomModel, shape: Shape, card: Card, make_runner: Callable[[bool], Any], args: argparse.Namespace
) -> None:
    """A line per prompt length. Multiplications: the matrices', and attention's below the diagonal."""
    runner = make_runner(False)
    for length in args.prompts:
        steps = prefill_step(length)
        seconds = least_wall_seconds(lambda s=steps: runner.execute(s), max(3, args.tries // 3))  # type: ignore[misc]
        attention = 2 * shape.layers * shape.heads * shape.head_dim * length * length
        flops = 2 * model.matrix_elements * length + attention
        print(
            f"prefill {length:6} tokens: {seconds * 1e3:8.1f} ms  {length / seconds:9,.0f} tokens/s"
            f"  {flops / seconds / 1e12:6.1f} TFLOP/s, {flops / seconds / card.flops:.0%} of the product's",
            flush=True,
        )


def write_trace(runner: Any, args: argparse.Namespace) -> None:
    """A timeline of a prefill, and of pipelined decode steps of the largest batch at the shortest context."""
    decodes, steps = Decodes(max(args.batches), min(args.contexts), room_of(args)), prefill_step(max(args.prompts))
    pipelined_seconds(runner, decodes, 3)
    runner.execute(steps)
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        runner.execute(steps)
        pipelined_seconds(runner, decodes, 5)
    profile.export_chrome_trace(args.trace)
    print(profile.key_averages().table(sort_by="cuda_time_total", row_limit=25))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time decode and prefill steps on a GPU beside its limits.")
    parser.add_argument("--layers", type=positive, default=32, help="of the 8B shape")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--contexts", type=positive, nargs="+", default=[512, 4096], help="positions computed per sequence"
    )
    parser.add_argument("--batches", type=positive, nargs="+", default=[1, 8, 32, 128], help="sequences")
    parser.add_argument("--prompts", type=positive, nargs="+", default=[512, 2048, 8192], help="tokens of a prefill")
    parser.add_argument("--tries", type=positive, default=20)
    parser.add_argument("--steps", type=positive, default=30, help="of the pipelined run")
    parser.add_argument("--trace", help="write a Chrome trace there, print the kernels' times, and end")
    return parser.parse_args()


def main() -> int:
    """Measure the card, make the model, measure steps."""
    args = parse()
    if not torch.cuda.is_available():
        print("bench.gpu_step: no GPU here (torch.cuda.is_available() is false): nothing measured", file=sys.stderr)
        return 0
    # Here: without Triton and a GPU the module above is still imported, by tests.
    runner_class = importlib.import_module("engine.gpu.runner").GpuRunner
    device, shape = torch.device("cuda"), Shape(layers=args.layers)
    longest = max(*args.contexts, *args.prompts) + 4 * args.tries + 4 * args.steps + 64
    card = measure_card(device, args.dtype, args.tries)
    print(f"{card.name}: copies {card.copy_bytes_per_s / 1e12:.2f} TB/s, multiplies {card.flops / 1e12:.0f} TFLOP/s")
    model = random_model(shape, args.dtype, device, longest)
    print(f"{shape.layers} layers, {args.dtype}, {model.weight_bytes / 1e9:.2f} GB read per step")
    layout = shape.kv_layout(args.dtype, BLOCK_SIZE)
    free, _ = torch.cuda.mem_get_info(device)
    wanted = max(max(args.batches) * blocks_of(max(args.contexts), args), -(-max(args.prompts) // BLOCK_SIZE))
    pool = KvPool(layout, min(wanted, (free - SPARE_BYTES) // layout.block_bytes), device=device)

    def make_runner(graphs: bool) -> Any:
        runner = runner_class(model.module, pool, longest, max(args.batches), max(args.prompts))
        if graphs:
            start = time.perf_counter()
            print(f"graphs captured: {runner.capture()}, {time.perf_counter() - start:.1f} s", flush=True)
        return runner

    if args.trace is not None:
        write_trace(make_runner(True), args)
        return 0
    report_decode(model, layout, card, make_runner, args)
    report_prefill(model, shape, card, make_runner, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
