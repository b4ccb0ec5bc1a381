"""The least that plays the router for workers under a benchmark: their processes, a session with each, what came."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

from kv_transfer.transports.gpu_choice import nccl_environment
from pdserve.config import WorkerConfig, WorkerStart
from pdserve.ids import PROTOCOL_VERSION, SequenceKey
from pdserve.sampling import SamplingParams
from pdserve.v1 import worker_pb2 as pb
from pdserve.v1 import worker_pb2_grpc
from pdserve.wire import key_to_proto, sampling_to_proto

SECRET = "bench"
START_S, REQUEST_S = 300.0, 120.0


@dataclass(slots=True)
class Seen:
    """When what of one request arrived here."""

    token_s: dict[int, float] = field(default_factory=dict)  # by index of the output
    tokens: dict[int, int] = field(default_factory=dict)  # likewise
    submitted_s: float = 0.0
    committed_s: float = 0.0
    transport: str = ""  # that moved its KV
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
                for attempt, index, token in zip(plain.attempts, plain.indexes, plain.token_ids, strict=True):
                    self._seen[attempt].token_s[index] = now
                    self._seen[attempt].tokens[index] = token
                for output in message.step.outputs:
                    seen = self._seen[output.key.attempt]
                    for index, token in enumerate(output.token_ids, output.first_index):
                        seen.token_s[index] = now
                        seen.tokens[index] = token
                    if output.first_index == 0:
                        seen.prefill_s = output.timing.first_token_s
                    if output.finish_reason:
                        seen.done.set()
            case "handoff" if message.handoff.progress == pb.HANDOFF_PROGRESS_COMMITTED:
                seen = self._seen[message.handoff.key.attempt]
                seen.committed_s, seen.transport = now, message.handoff.transport
            case "failed":
                raise RuntimeError(f"{self.peer.worker_id}: {message.failed.message}")

    def submit(
        self,
        attempt: int,
        mode: pb.SequenceMode,
        prompt: list[int],
        sampling: SamplingParams,
        peer: pb.Peer | None = None,
    ) -> None:
        submit = pb.SubmitSequence(
            key=key_to_proto(SequenceKey("bench", attempt)), mode=mode, prompt_token_ids=prompt,
            sampling=sampling_to_proto(sampling), deadline_left_s=REQUEST_S, peer=peer,
        )  # fmt: skip
        self._outgoing.put_nowait(pb.RouterMessage(submit=submit))


@asynccontextmanager
async def worker(
    role: str, model: Path, config: WorkerConfig, device: str = "cpu", shares_gpu: bool = False, log: int | None = None
) -> AsyncIterator[pb.Peer]:
    """A worker process, warm; it ends with its standard input. `log`: a file descriptor for what it says."""
    start = WorkerStart(
        f"{role}-0", role, str(model), device, SECRET, "127.0.0.1:0", config, shares_gpu=shares_gpu
    )  # fmt: skip
    # As the launcher does (deploy/local/environment.py).
    environment = nccl_environment(shares_gpu=shares_gpu) if device != "cpu" else {}
    settings = [f"{name}={value}" for name, value in environment.items()]
    process = await asyncio.create_subprocess_exec(
        "env", *settings, sys.executable, "-m", f"{role}_worker", cwd=Path(__file__).parents[1],
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL if log is None else log,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(start.to_json().encode() + b"\n")
        line = await asyncio.wait_for(process.stdout.readline(), START_S)
        if not line:
            raise RuntimeError(f"{start.worker_id} ended with {await process.wait()} before it was ready")
        ready = json.loads(line)
        if not ready["ready"]:
            raise RuntimeError(ready["error"])
        yield pb.Peer(worker_id=start.worker_id, boot_id=bytes.fromhex(ready["boot_id"]), address=ready["address"])
    finally:
        process.stdin.close()
        await process.wait()
