"""Workers that compute nothing: what a router is fed in its benchmark, over real sessions.

One prefill and one decode worker in a process of their own. The prefill worker answers with token 1 at once; the decode
worker makes one token of every sequence each step and sends them as one message, as an engine does. Every token is a
single printable character, and the instant of its step is remembered.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import grpc

from pdserve.ids import PROTOCOL_VERSION, new_boot_id
from pdserve.v1 import inference_pb2, worker_pb2_grpc
from pdserve.v1 import worker_pb2 as pb

SECRET = "bench"
FIRST_CHARACTER_ID, NUM_CHARACTERS = 4, 94  # of the byte tokens of deploy/models/byte_bpe.py: "!" to "~"
STATUS_S = 1.0
LEAST_STEP_S = 1e-4


def token_of(index: int) -> int:
    """The id of output token `index`."""
    return FIRST_CHARACTER_ID + index % NUM_CHARACTERS


@dataclass(slots=True)
class Sequence:
    """One sequence on the decode worker."""

    key: pb.SequenceKey
    max_tokens: int
    next_index: int = 1


@dataclass
class Steps:
    """What both workers share: who runs, and when each token was made."""

    step_s: float
    running: dict[tuple[str, int], Sequence] = field(default_factory=dict)
    made_s: dict[str, list[float]] = field(default_factory=dict)  # request id -> the step of each of its tokens


class StepWorker(worker_pb2_grpc.WorkerServiceServicer):  # type: ignore[misc]  # grpc has no types
    """WorkerService of one role."""

    def __init__(self, role: str, steps: Steps) -> None:
        self._role = role
        self._steps = steps
        self._queue: asyncio.Queue[pb.WorkerMessage] = asyncio.Queue()
        self._started = asyncio.Event()  # something runs
        self._read = asyncio.Event()  # nothing waits to be sent

    async def Session(self, incoming: AsyncIterator[pb.RouterMessage], context: Any) -> AsyncIterator[pb.WorkerMessage]:
        hello = pb.WorkerHello(
            worker_id=f"{self._role}-0", boot_id=new_boot_id(), role=self._role, device="cpu", pid=os.getpid(),
            protocol_version=PROTOCOL_VERSION, layout_fingerprint=b"L" * 32, num_blocks=1 << 20, block_size=16,
            block_bytes=4096, max_num_seqs=1024, max_num_batched_tokens=4096, max_model_len=1 << 16, vocab_size=512,
            prefix_caching=True,
        )  # fmt: skip
        yield pb.WorkerMessage(hello=hello)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(incoming))
            tasks.create_task(self._report())
            if self._role == "decode":
                tasks.create_task(self._decode())
            while True:
                message = await self._queue.get()
                if self._queue.empty():
                    self._read.set()
                yield message

    async def _report(self) -> None:
        while True:
            blocks = pb.BlockCounts(free=1 << 20)
            self._queue.put_nowait(pb.WorkerMessage(status=pb.WorkerStatus(blocks=blocks)))
            await asyncio.sleep(STATUS_S)

    async def _listen(self, incoming: AsyncIterator[pb.RouterMessage]) -> None:
        async for message in incoming:
            kind = message.WhichOneof("message")
            if kind == "abort":
                self._steps.running.pop((message.abort.key.request_id, message.abort.key.attempt), None)
            elif kind == "submit" and self._role == "prefill":
                self._prefill(message.submit)
            elif kind == "submit":
                self._begin(message.submit)

    def _prefill(self, submit: pb.SubmitSequence) -> None:
        self._steps.made_s[submit.key.request_id] = [time.perf_counter()]
        timing = pb.SequenceTiming(queue_s=1e-4, first_token_s=1e-3)
        ends = submit.sampling.max_tokens == 1
        self._say_step([_output(submit.key, 0, ends, timing)])
        freed = pb.HandoffEvent(key=submit.key, progress=pb.HANDOFF_PROGRESS_FREED)
        self._queue.put_nowait(pb.WorkerMessage(handoff=freed))

    def _begin(self, submit: pb.SubmitSequence) -> None:
        for progress in (pb.HANDOFF_PROGRESS_RESERVED, pb.HANDOFF_PROGRESS_COMMITTED):
            self._queue.put_nowait(pb.WorkerMessage(handoff=pb.HandoffEvent(key=submit.key, progress=progress)))
        if submit.sampling.max_tokens > 1:
            sequence = Sequence(submit.key, submit.sampling.max_tokens)
            self._steps.running[submit.key.request_id, submit.key.attempt] = sequence
            self._started.set()

    async def _decode(self) -> None:
        running = self._steps.running
        while True:
            if not running:
                self._started.clear()
                await self._started.wait()
            await asyncio.sleep(max(self._steps.step_s, LEAST_STEP_S))
            if not self._queue.empty():  # flat out: as fast as the router reads
                self._read.clear()
                await self._read.wait()
            now_s = time.perf_counter()
            outputs, plain = [], pb.PlainTokens()
            for name, sequence in list(running.items()):
                made_s = self._steps.made_s.get(name[0])
                if made_s is None:
                    continue  # token 1 has not been made yet
                made_s.append(now_s)
                ends = sequence.next_index + 1 == sequence.max_tokens
                if ends or sequence.next_index == 1:
                    timing = pb.SequenceTiming(queue_s=1e-4, first_token_s=1e-3) if sequence.next_index == 1 else None
                    outputs.append(_output(sequence.key, sequence.next_index, ends, timing))
                else:
                    plain.attempts.append(sequence.key.attempt)
                    plain.indexes.append(sequence.next_index)
                    plain.token_ids.append(token_of(sequence.next_index))
                sequence.next_index += 1
                if ends:
                    del running[name]
            self._say_step(outputs, plain)

    def _say_step(self, outputs: list[pb.SequenceOutput], plain: pb.PlainTokens | None = None) -> None:
        self._queue.put_nowait(pb.WorkerMessage(step=pb.StepOutput(outputs=outputs, plain=plain)))


def _output(key: pb.SequenceKey, index: int, ends: bool, timing: pb.SequenceTiming | None) -> pb.SequenceOutput:
    reason = inference_pb2.FINISH_REASON_LENGTH if ends else inference_pb2.FINISH_REASON_UNSPECIFIED
    return pb.SequenceOutput(
        key=key, first_index=index, token_ids=(token_of(index),), finish_reason=reason, timing=timing
    )


async def serve_workers(step_s: float, pipe: Connection) -> None:
    """Both workers until the parent says so; tells their addresses first, the instants of all steps last."""
    steps = Steps(step_s)
    servers, addresses = [], []
    for role in ("prefill", "decode"):
        server = grpc.aio.server()
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(StepWorker(role, steps), server)
        addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        servers.append(server)
    pipe.send(addresses)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, pipe.recv)
    pipe.send(steps.made_s)
    await loop.run_in_executor(None, pipe.recv)  # the router goes first
    for server in servers:
        await server.stop(0)


def run_workers(step_s: float, pipe: Connection) -> None:
    asyncio.run(serve_workers(step_s, pipe))
