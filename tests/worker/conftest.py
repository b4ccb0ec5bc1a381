"""Mock workers on the test's own event loop, and a bare router that speaks to them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest

from decode_worker.policy import DECODE
from pdserve.clock import MonotonicClock
from pdserve.config import WorkerConfig, WorkerStart
from pdserve.ids import PROTOCOL_VERSION, SequenceKey
from pdserve.sampling import SamplingParams
from pdserve.v1 import worker_pb2 as pb
from pdserve.v1 import worker_pb2_grpc
from pdserve.wire import key_to_proto, sampling_to_proto
from prefill_worker.policy import PREFILL
from worker.assembly import BuiltEngine
from worker.build import build_engine
from worker.process import Ready, run_worker

SECRET = "s3cret"


def on_wire(key: SequenceKey) -> SequenceKey:
    """The key under which workers know a test's sequence: as a router does, no two have the same attempt."""
    return SequenceKey(key.request_id, zlib.crc32(f"{key.request_id}#{key.attempt}".encode()) or 1)


class Wire:
    """One worker and the session of a bare router with it."""

    def __init__(self, ready: Ready, built: BuiltEngine) -> None:
        self.ready, self.built = ready, built
        self.channel = grpc.aio.insecure_channel(ready.address)
        self.outgoing: asyncio.Queue[pb.RouterMessage | None] = asyncio.Queue()
        self.hello: pb.WorkerHello | None = None
        self.keys: dict[int, SequenceKey] = {}  # of what was submitted, by attempt on the wire
        self.tokens: dict[SequenceKey, dict[int, int]] = {}
        self.finished: dict[SequenceKey, int] = {}
        self.failed: dict[SequenceKey, pb.SequenceFailed] = {}
        self.progress: dict[SequenceKey, list[pb.HandoffEvent]] = {}
        self.status: pb.WorkerStatus | None = None
        self.changed = asyncio.Condition()

    async def _requests(self) -> AsyncIterator[pb.RouterMessage]:
        yield pb.RouterMessage(hello=pb.SessionHello(router_boot_id=b"r" * 16, protocol_version=PROTOCOL_VERSION))
        while (message := await self.outgoing.get()) is not None:
            yield message

    async def read(self) -> None:
        stub = worker_pb2_grpc.WorkerServiceStub(self.channel)
        call = stub.Session(self._requests(), metadata=(("authorization", f"Bearer {SECRET}"),))
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for message in call:
                async with self.changed:
                    self._take(message)
                    self.changed.notify_all()

    def _take(self, message: pb.WorkerMessage) -> None:
        match message.WhichOneof("message"):
            case "hello":
                self.hello = message.hello
            case "step":
                plain = message.step.plain
                for attempt, index, token in zip(plain.attempts, plain.indexes, plain.token_ids, strict=True):
                    self._take_token(self.keys[attempt], index, token)
                for output in message.step.outputs:
                    key = self.keys[output.key.attempt]
                    for index, token in enumerate(output.token_ids, output.first_index):
                        self._take_token(key, index, token)
                    if output.finish_reason:
                        self.finished[key] = output.finish_reason
            case "failed":
                self.failed[self.keys[message.failed.key.attempt]] = message.failed
            case "handoff":
                event = message.handoff
                key = self.keys[event.key.attempt]
                self.progress.setdefault(key, []).append(event)
            case "status":
                self.status = message.status

    def _take_token(self, key: SequenceKey, index: int, token: int) -> None:
        assert index not in self.tokens.setdefault(key, {}), "a token came twice"
        self.tokens[key][index] = token

    async def until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        async with asyncio.timeout(timeout_s), self.changed:
            await self.changed.wait_for(condition)

    def submit(
        self,
        key: SequenceKey,
        mode: int,
        prompt: list[int],
        sampling: SamplingParams,
        peer: Wire | None = None,
        deadline_s: float = 60.0,
        output: Sequence[int] = (),
    ) -> None:
        named = on_wire(key)
        self.keys[named.attempt] = key
        submit = pb.SubmitSequence(
            key=key_to_proto(named),
            mode=mode,
            prompt_token_ids=prompt,
            output_token_ids=output,
            sampling=sampling_to_proto(sampling),
            deadline_left_s=deadline_s,
        )
        if peer is not None:
            who = peer.ready
            submit.peer.CopyFrom(pb.Peer(worker_id=who.worker_id, boot_id=who.boot_id, address=who.address))
        self.outgoing.put_nowait(pb.RouterMessage(submit=submit))

    def abort(self, key: SequenceKey) -> None:
        self.outgoing.put_nowait(pb.RouterMessage(abort=pb.AbortSequence(key=key_to_proto(on_wire(key)))))

    async def engine_is_empty(self, timeout_s: float = 10.0) -> None:
        """Wait until the engine knows no sequence; no session tells, so it is asked again and again."""
        scheduler = self.built.core.scheduler
        async with asyncio.timeout(timeout_s):
            while scheduler.live_keys():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        scheduler.check()
        assert scheduler.blocks.num_referenced == 0

    async def all_blocks_free(self) -> None:
        """Wait for a status that says so, and check the scheduler's and the pool's own books."""
        self.status = None

        def empty() -> bool:
            blocks = None if self.status is None else self.status.blocks
            return blocks is not None and blocks.used + blocks.leased + blocks.quarantined + blocks.leaked == 0

        await self.until(empty)
        self.built.core.scheduler.check()


class Cluster:
    """Prefill and decode workers, and a router's view of each."""

    def __init__(self, prefill: list[Wire], decode: list[Wire]) -> None:
        self.prefill, self.decode = prefill, decode

    @property
    def wires(self) -> list[Wire]:
        return self.prefill + self.decode

    def split(self, key: SequenceKey, p: Wire, d: Wire, prompt: list[int], sampling: SamplingParams) -> None:
        d.submit(key, pb.SEQUENCE_MODE_DECODE, prompt, sampling, p)
        p.submit(key, pb.SEQUENCE_MODE_PREFILL, prompt, sampling, d)

    async def settled(self) -> None:
        for wire in self.wires:
            await wire.all_blocks_free()


Launch = Callable[..., contextlib.AbstractAsyncContextManager[Cluster]]


@pytest.fixture
def launch_workers(tmp_path: Path) -> Launch:
    """`async with launch_workers(prefill=1, decode=1, transport="shm", ...) as cluster`; `model`: a real engine."""

    @contextlib.asynccontextmanager
    async def launch(
        prefill: int = 1,
        decode: int = 1,
        transport: str = "shm",
        step_s: float = 0.0,
        model: Path | None = None,
        host: str = "127.0.0.1",
        device: str = "cpu",
        decode_changes: Mapping[str, object] | None = None,
        **changes: object,
    ) -> AsyncIterator[Cluster]:
        profile = tmp_path / "profile.json"
        coefficients = ("per_prefill_token_s", "per_decode_sequence_s", "per_context_token_s")
        profile.write_text(json.dumps({"base_s": step_s, **dict.fromkeys(coefficients, 0.0)}))
        settings = {"block_size": 4, "max_num_seqs": 32, "max_num_batched_tokens": 64, "max_model_len": 512,
                    "kv_bytes": 200_000 if model is None else 8 << 20, "kv_transport": transport, "dtype": "float32",
                    "threads": 1, "mock": str(profile) if model is None else None, **changes}  # fmt: skip
        config = WorkerConfig(**settings)  # type: ignore[arg-type]
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            wires: dict[str, list[Wire]] = {"prefill": [], "decode": []}
            readers = []
            roles = itertools.chain(itertools.repeat("prefill", prefill), itertools.repeat("decode", decode))
            for number, role in enumerate(roles):
                own = replace(config, **(decode_changes or {})) if role == "decode" else config  # type: ignore[arg-type]
                start = WorkerStart(f"{role}-{number}", role, str(model or ""), device, SECRET, f"{host}:0", own)
                built = build_engine(start, MonotonicClock())
                ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
                policy = PREFILL if role == "prefill" else DECODE
                group.create_task(run_worker(policy, start, built, stop, ready.set_result))
                wire = Wire(await ready, built)
                readers.append(group.create_task(wire.read()))
                wires[role].append(wire)
                await wire.until(lambda wire=wire: wire.hello is not None)  # type: ignore[misc]
            cluster = Cluster(wires["prefill"], wires["decode"])
            try:
                yield cluster
            finally:
                stop.set()
                for wire in cluster.wires:
                    wire.outgoing.put_nowait(None)
                await asyncio.gather(*readers, return_exceptions=True)
                for wire in cluster.wires:
                    await wire.channel.close()

    return launch
