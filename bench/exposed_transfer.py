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
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

from bench.arguments import positive
from bench.reference_models import model_directory
from pdserve.config import WorkerConfig, WorkerStart
from pdserve.ids import PROTOCOL_VERSION, SequenceKey
from pdserve.sampling import SamplingParams
from pdserve.v1 import worker_pb2 as pb
from pdserve.v1 import worker_pb2_grpc
from pdserve.wire import key_to_proto, sampling_to_proto

GATE, STRETCH = 0.05, 0.01  # of the prefill
SECRET = "bench"
START_S, REQUEST_S = 300.0, 120.0
SAMPLING = SamplingParams(max_tokens=3)


@dataclass(slots=True)
class Seen:
    """When what of one request arrived here."""

    token_s: dict[int, float] = field(default_factory=dict)  # by index of the output
    committed_s: float = 0.0
    prefill_s: float = 0.0  # first step until token 1, by the worker's own clock
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def exposed_s(self) -> float:
        return self.committed_s - self.token_s[0]

    @property
    def gap_s(self) -> float:
        """Token 1 to token 2: the exposed transfer and one decode step."""
        return self.token_s[1] - self.token_s[0]


class Session:
    """A router's stream to one worker."""

    def __init__(self, peer: pb.Peer, seen: dict[int, Seen]) -> None:
        self.peer = peer
        self._seen = seen
        self._channel = grpc.aio.insecure_channel(peer.address)
        self._outgoing: asyncio.Queue[pb.RouterMessage] = asyncio.Queue()

    async def _requests(self) -> AsyncIterator[pb.RouterMessage]:
        yield pb.RouterMessage(hello=pb.SessionHello(router_boot_id=b"r" * 16, protocol_version=PROTOCOL_VERSION))
        while True:
            yield await self._outgoing.get()

    async def read(self) -> None:
        stub = worker_pb2_grpc.WorkerServiceStub(self._channel)
        async for message in stub.Session(self._requests(), metadata=(("authorization", f"Bearer {SECRET}"),)):
            self._take(message, time.perf_counter())

    def _take(self, message: pb.WorkerMessage, now: float) -> None:
        match message.WhichOneof("message"):
            case "step":
                plain = message.step.plain
                for attempt, index in zip(plain.attempts, plain.indexes, strict=True):
                    self._seen[attempt].token_s[index] = now
                for output in message.step.outputs:
                    seen = self._seen[output.key.attempt]
                    seen.token_s[output.first_index] = now
                    if output.first_index == 0:
                        seen.prefill_s = output.timing.first_token_s
                    if output.finish_reason:
                        seen.done.set()
            case "handoff" if message.handoff.progress == pb.HANDOFF_PROGRESS_COMMITTED:
                self._seen[message.handoff.key.attempt].committed_s = now
            case "failed":
                raise RuntimeError(f"{self.peer.worker_id}: {message.failed.message}")

    def submit(self, attempt: int, mode: int, prompt: list[int], peer: pb.Peer) -> None:
        submit = pb.SubmitSequence(
            key=key_to_proto(SequenceKey("bench", attempt)), mode=mode, prompt_token_ids=prompt,
            sampling=sampling_to_proto(SAMPLING), deadline_left_s=REQUEST_S, peer=peer,
        )  # fmt: skip
        self._outgoing.put_nowait(pb.RouterMessage(submit=submit))


@asynccontextmanager
async def worker(role: str, model: Path, config: WorkerConfig) -> AsyncIterator[pb.Peer]:
    """A worker process, warm; it ends with its standard input."""
    start = WorkerStart(f"{role}-0", role, str(model), "cpu", SECRET, "127.0.0.1:0", config)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"{role}_worker", cwd=Path(__file__).parents[1],
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(start.to_json().encode() + b"\n")
        ready = json.loads(await asyncio.wait_for(process.stdout.readline(), START_S))
        if not ready["ready"]:
            raise RuntimeError(ready["error"])
        yield pb.Peer(worker_id=start.worker_id, boot_id=bytes.fromhex(ready["boot_id"]), address=ready["address"])
    finally:
        process.stdin.close()
        await process.wait()


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
                sessions[1].submit(attempt, pb.SEQUENCE_MODE_DECODE, prompt, p)
                sessions[0].submit(attempt, pb.SEQUENCE_MODE_PREFILL, prompt, d)
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
