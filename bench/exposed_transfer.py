"""How long a request waits for its KV: from token 1's leaving the prefill worker to the decode worker's being ready.

    python -m bench.exposed_transfer [--model tiny|small|DIRECTORY] [--prompt-tokens 2000] [--repeats 8]
                                     [--transports shm gloo] [--max-num-batched-tokens 512]

Starts one worker of each role as the launcher does and plays the router: one clock sees token 1 arrive from P, the
commit from D, and token 2 from D. The floor is zero: the blocks of all chunks but the last travel while the next one is
computed. Gate: at most 5 % of the prompt's computation; stretch: 1 %.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
from pathlib import Path

from bench.arguments import positive
from bench.bare_router import Seen, Session, worker
from bench.reference_models import model_directory
from pdserve.config import WorkerConfig
from pdserve.sampling import SamplingParams
from pdserve.v1 import worker_pb2 as pb

GATE, STRETCH = 0.05, 0.01  # of the prefill
REQUEST_S = 120.0
SAMPLING = SamplingParams(max_tokens=3)


async def measure(model: Path, config: WorkerConfig, prompt_tokens: int, repeats: int) -> list[Seen]:
    """One request after the other; the first ones, which make the pair and warm both workers, are left out."""
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    draw = random.Random(1)
    seen: dict[int, Seen] = {}
    async with worker("prefill", model, config) as p, worker("decode", model, config) as d:
        sessions = [Session(p, seen), Session(d, seen)]
        async with asyncio.TaskGroup() as group:
            readers = [group.create_task(session.read()) for session in sessions]
            for attempt in range(1, repeats + 3):
                one = seen[attempt] = Seen()
                prompt = [draw.randrange(vocabulary) for _ in range(prompt_tokens)]
                sessions[1].submit(attempt, pb.SEQUENCE_MODE_DECODE, prompt, SAMPLING, p)
                sessions[0].submit(attempt, pb.SEQUENCE_MODE_PREFILL, prompt, SAMPLING, d)
                await asyncio.wait_for(one.done.wait(), REQUEST_S)
            for reader in readers:
                reader.cancel()
    return [seen[attempt] for attempt in range(3, repeats + 3)]


def line(transport: str, seen: list[Seen]) -> str:
    """A row: the medians and the least of each share."""
    shares = [one.exposed_s / one.prefill_s for one in seen]
    numbers = (
        f"{statistics.median(one.prefill_s for one in seen) * 1e3:.0f}",
        f"{statistics.median(one.exposed_s for one in seen) * 1e3:.2f}",
        f"{min(one.exposed_s for one in seen) * 1e3:.2f}",
        f"{statistics.median(one.gap_s for one in seen) * 1e3:.1f}",
        f"{statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})",
    )
    return f"| {transport} | " + " | ".join(numbers) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--prompt-tokens", type=positive, default=2000)
    parser.add_argument("--repeats", type=positive, default=8)
    parser.add_argument("--transports", nargs="+", default=["shm", "gloo"])
    parser.add_argument("--max-num-batched-tokens", type=positive, default=512)
    arguments = parser.parse_args()
    print(f"{arguments.prompt_tokens:,} tokens of {arguments.model}, {arguments.max_num_batched_tokens} per step, ms")
    print("| transport | prefill | exposed | least | token 1 to 2 | exposed / prefill |\n|---|---|---|---|---|---|")
    with model_directory(arguments.model) as model:
        for transport in arguments.transports:
            config = WorkerConfig(
                dtype="bfloat16", max_num_seqs=4, max_num_batched_tokens=arguments.max_num_batched_tokens,
                max_model_len=arguments.prompt_tokens + 16, kv_bytes=1 << 30, enable_prefix_caching=False,
                kv_transport=transport, threads=1,
            )  # fmt: skip
            seen = asyncio.run(measure(model, config, arguments.prompt_tokens, arguments.repeats))
            print(line(transport, seen), flush=True)
    print(f"gate {GATE:.0%}, stretch {STRETCH:.0%}")


if __name__ == "__main__":
    main()
