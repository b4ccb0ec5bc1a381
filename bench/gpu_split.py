"""P and D as two processes on one GPU, beside one process that does both: latency, throughput, exposed transfer.

    python -m bench.gpu_split [--layers 8] [--transports auto staged] [--requests 48] [--concurrency 16]
                              [--prompt-tokens 1024] [--output-tokens 64] [--device cuda:0]

NOT YET RUN ON A GPU; with `--device cpu --model DIRECTORY --transports shm gloo` all of it runs on a CPU. The model is
8B-shaped, random and of `--layers` layers, written once and loaded by every worker. Workers on one card divide
`--gpu-memory-utilization`. The load is closed: so many requests at once, the next when one ends. Split and colocated
answer the same prompts greedily; `same` is the share of requests whose tokens are equal (one differs from there on).
Needs no Ray and no web server: this process plays the router.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch

from bench.arguments import positive
from bench.bare_router import REQUEST_S, Seen, Session, worker
from bench.gpu_model import Shape, save_random
from pdserve.config import WorkerConfig
from pdserve.sampling import SamplingParams
from pdserve.v1 import worker_pb2 as pb

COLOCATED = "colocated"
WARM_UP = 2  # requests before the load, which make the pair


@dataclass(frozen=True, slots=True)
class Setup:
    """One configuration of workers."""

    name: str  # COLOCATED, or the transport that is asked for
    model: Path
    device: str
    config: WorkerConfig


async def measure(setup: Setup, prompts: list[list[int]], sampling: SamplingParams, concurrency: int) -> list[Seen]:
    """What was seen of every prompt, in order."""
    split = setup.name != COLOCATED
    seen: dict[int, Seen] = {}
    async with AsyncExitStack() as stack:
        config = setup.config
        if split:
            share = config.gpu_memory_utilization / 2
            config = replace(config, kv_transport=setup.name, gpu_memory_utilization=share)
        roles = ("prefill", "decode") if split else ("decode",)
        starting = [stack.enter_async_context(worker(r, setup.model, config, setup.device, split, 2)) for r in roles]
        sessions = [Session(peer, seen) for peer in await asyncio.gather(*starting)]
        group = await stack.enter_async_context(asyncio.TaskGroup())
        readers = [group.create_task(session.read()) for session in sessions]
        gate = asyncio.Semaphore(concurrency)

        async def one(attempt: int, prompt: list[int]) -> None:
            async with gate:
                mine = seen[attempt] = Seen(submitted_s=time.perf_counter())
                if split:
                    p, d = sessions
                    d.submit(attempt, pb.SEQUENCE_MODE_DECODE, prompt, sampling, p.peer)
                    p.submit(attempt, pb.SEQUENCE_MODE_PREFILL, prompt, sampling, d.peer)
                else:
                    sessions[0].submit(attempt, pb.SEQUENCE_MODE_FULL, prompt, sampling)
                await asyncio.wait_for(mine.done.wait(), REQUEST_S)

        for attempt in range(1, WARM_UP + 1):
            await one(attempt, prompts[0])
        first = WARM_UP + 1
        async with asyncio.TaskGroup() as load:
            for attempt, prompt in enumerate(prompts, first):
                load.create_task(one(attempt, prompt))
        for reader in readers:
            reader.cancel()
    return [seen[attempt] for attempt in range(first, first + len(prompts))]


def line(name: str, seen: list[Seen], alone: list[Seen] | None) -> str:
    """A row: medians over requests, tails over gaps, tokens per second over all."""
    firsts = [one.token_s[0] - one.submitted_s for one in seen]
    gaps = sorted(b - a for one in seen for a, b in pairwise([one.token_s[i] for i in sorted(one.token_s)]))
    ends = [max(one.token_s.values()) for one in seen]
    count = sum(len(one.tokens) for one in seen)
    rate = count / (max(ends) - min(one.submitted_s for one in seen))
    moved = [one.exposed_s for one in seen if one.committed_s]
    same = "" if alone is None else f"{sum(a.tokens == b.tokens for a, b in zip(seen, alone, strict=True))}/{len(seen)}"
    used = sorted({one.transport for one in seen if one.transport})
    numbers = (
        f"{statistics.median(firsts) * 1e3:.1f}",
        f"{statistics.median(gaps) * 1e3:.2f}" if gaps else "",
        f"{gaps[len(gaps) * 99 // 100] * 1e3:.2f}" if gaps else "",
        f"{rate:,.0f}",
        f"{statistics.median(moved) * 1e3:.2f}" if moved else "",
        same,
    )
    return f"| {name}{' (' + ', '.join(used) + ')' if used else ''} | " + " | ".join(numbers) + " |"


@contextmanager
def checkpoint(args: argparse.Namespace, length: int) -> Iterator[Path]:
    """The directory that was given, or a random model's for the while."""
    if args.model is not None:
        yield Path(args.model)
        return
    with tempfile.TemporaryDirectory() as directory:
        began = time.perf_counter()
        save_random(Shape(layers=args.layers), args.dtype, torch.device(args.device), length, Path(directory))
        torch.cuda.empty_cache()
        print(f"{args.layers} layers written in {time.perf_counter() - began:.0f} s", flush=True)
        yield Path(directory)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint; random weights unless given")
    parser.add_argument("--layers", type=positive, default=8, help="of the 8B shape, for random weights")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--transports", nargs="+", default=["auto", "staged"])
    parser.add_argument("--requests", type=positive, default=48)
    parser.add_argument("--concurrency", type=positive, default=16)
    parser.add_argument("--prompt-tokens", type=positive, default=1024)
    parser.add_argument("--output-tokens", type=positive, default=64)
    parser.add_argument("--max-num-batched-tokens", type=positive, default=2048)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.85)
    parser.add_argument("--kv-bytes", type=positive, help="of each worker; on a GPU what is left unless given")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """A line for one process that does both, then one per transport."""
    args = parse(arguments)
    if args.device != "cpu" and not torch.cuda.is_available():
        print("bench.gpu_split: no GPU here (torch.cuda.is_available() is false): nothing measured", file=sys.stderr)
        return 0
    length = args.prompt_tokens + args.output_tokens + 16
    sampling = SamplingParams(max_tokens=args.output_tokens)
    config = WorkerConfig(
        device="cpu" if args.device == "cpu" else "cuda", dtype=args.dtype, max_num_seqs=max(16, args.concurrency),
        max_num_batched_tokens=args.max_num_batched_tokens, max_model_len=length, kv_bytes=args.kv_bytes,
        enable_prefix_caching=False, gpu_memory_utilization=args.gpu_memory_utilization, threads=1,
    )  # fmt: skip
    with checkpoint(args, length) as model:
        vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
        draw = random.Random(1)
        prompts = [[draw.randrange(vocabulary) for _ in range(args.prompt_tokens)] for _ in range(args.requests)]
        print(
            f"{args.requests} prompts of {args.prompt_tokens:,}, {args.output_tokens} out, {args.concurrency} at once"
        )
        print(
            "| workers | TTFT ms | gap ms | gap p99 ms | tokens/s | exposed ms | same |\n|---|---|---|---|---|---|---|"
        )
        alone: list[Seen] | None = None
        for name in (COLOCATED, *args.transports):
            seen = asyncio.run(measure(Setup(name, model, args.device, config), prompts, sampling, args.concurrency))
            print(line(name, seen, alone), flush=True)
            alone = alone or seen
    return 0


if __name__ == "__main__":
    sys.exit(main())
