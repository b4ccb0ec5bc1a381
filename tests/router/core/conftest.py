"""Workers that are real gRPC servers and obey the contract, but whose every word a test decides."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from pdserve import wire
from pdserve.clock import MonotonicClock
from pdserve.errors import ServingError
from pdserve.ids import PROTOCOL_VERSION, SequenceKey, new_boot_id
from pdserve.sampling import FinishReason, SamplingParams
from pdserve.slo import Slo
from pdserve.v1 import worker_pb2, worker_pb2_grpc
from router.core.config import CoreConfig
from router.core.core import Core
from router.interface import Finished, RouterCore, RouterRequest, TokenDelta, TokenStream

SECRET = "s3cret"
PATIENCE_S = 10.0


class FakeWorker(worker_pb2_grpc.WorkerServiceServicer):  # type: ignore[misc]
    """Records what the router says; says what the test says."""

    def __init__(self, worker_id: str, role: str, **hello: object) -> None:
        self.worker_id = worker_id
        self.role = role
        self.boot_id = new_boot_id()
        self.hello: dict[str, Any] = {
            "protocol_version": PROTOCOL_VERSION, "layout_fingerprint": b"L" * 32, "num_blocks": 1000,
            "block_size": 16, "block_bytes": 4096, "max_num_seqs": 64, "max_num_batched_tokens": 512,
            "max_model_len": 8192, "vocab_size": 1000, "device": "cpu", "pid": 1,
        } | hello  # fmt: skip
        self.status = worker_pb2.WorkerStatus(blocks=worker_pb2.BlockCounts(free=1000))
        self.mute = False
        self.submits: dict[SequenceKey, worker_pb2.SubmitSequence] = {}
        self.aborts: list[SequenceKey] = []
        self.renewed: set[SequenceKey] = set()
        self.sessions = 0
        self.address = ""
        self._server: grpc.aio.Server | None = None
        self._outgoing: asyncio.Queue[worker_pb2.WorkerMessage] = asyncio.Queue()
        self._changed = asyncio.Condition()
        self._session_ended = asyncio.Event()

    # ---- life ----

    async def start(self, port: int = 0) -> None:
        self._server = grpc.aio.server()
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def kill(self) -> None:
        """As a dead process: the connection closes at once."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def Session(
        self, incoming: AsyncIterator[worker_pb2.RouterMessage], context: Any
    ) -> AsyncIterator[worker_pb2.WorkerMessage]:
        if dict(context.invocation_metadata()).get("authorization") != f"Bearer {SECRET}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong secret")
        first = await anext(incoming)
        assert first.WhichOneof("message") == "hello"
        self.sessions += 1
        self._outgoing = asyncio.Queue()
        yield worker_pb2.WorkerMessage(
            hello=worker_pb2.WorkerHello(worker_id=self.worker_id, boot_id=self.boot_id, role=self.role, **self.hello)
        )
        async with asyncio.TaskGroup() as tasks:
            mine = [tasks.create_task(self._listen(incoming)), tasks.create_task(self._report())]
            try:
                while True:
                    yield await self._outgoing.get()
            finally:
                for task in mine:
                    task.cancel()
                self._session_ended.set()

    async def _report(self) -> None:
        while True:
            if not self.mute:
                self.say(status=self.status)
            await asyncio.sleep(0.1)

    async def _listen(self, incoming: AsyncIterator[worker_pb2.RouterMessage]) -> None:
        async for message in incoming:
            kind = message.WhichOneof("message")
            if kind == "submit":
                self.submits[wire.key_from_proto(message.submit.key)] = message.submit
            elif kind == "abort":
                self.aborts.append(wire.key_from_proto(message.abort.key))
            elif kind == "renew":
                self.renewed |= {wire.key_from_proto(key) for key in message.renew.keys}
            async with self._changed:
                self._changed.notify_all()

    # ---- what the test does ----

    async def until(self, predicate: Callable[[FakeWorker], bool]) -> None:
        """Wait for the router's messages to make it true."""
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(lambda: predicate(self))

    def key_of(self, request_id: str) -> SequenceKey | None:
        """The last key submitted under this id."""
        return next((key for key in reversed(self.submits) if key.request_id == request_id), None)

    async def told(self, request_id: str, after: SequenceKey | None = None) -> SequenceKey:
        """The key, once this worker was told of the request (again, after another key of the same id)."""
        await self.until(lambda worker: worker.key_of(request_id) not in (None, after))
        key = self.key_of(request_id)
        assert key is not None
        return key

    async def until_session_ends(self) -> None:
        """The next end of a session."""
        self._session_ended.clear()
        await asyncio.wait_for(self._session_ended.wait(), PATIENCE_S)

    async def aborted(self, request_id: str) -> None:
        await self.until(lambda worker: any(key.request_id == request_id for key in worker.aborts))

    def say(self, **message: Any) -> None:
        self._outgoing.put_nowait(worker_pb2.WorkerMessage(**message))

    def tokens(
        self,
        key: SequenceKey,
        first_index: int,
        *token_ids: int,
        finish: FinishReason | None = None,
        queue_s: float | None = None,
        first_token_s: float = 0.0,
        cached: int = 0,
    ) -> None:
        """One step's output for one sequence: plain where there is nothing but a token, as workers do."""
        if len(token_ids) == 1 and finish is None and queue_s is None:
            plain = worker_pb2.PlainTokens(attempts=[key.attempt], indexes=[first_index], token_ids=token_ids)
            self.say(step=worker_pb2.StepOutput(plain=plain))
            return
        timing = None
        if queue_s is not None:
            timing = worker_pb2.SequenceTiming(queue_s=queue_s, first_token_s=first_token_s, cached_tokens=cached)
        output = wire.output_to_proto(key, first_index, token_ids, finish_reason=finish, timing=timing)
        self.say(step=worker_pb2.StepOutput(outputs=[output]))

    def handoff(self, key: SequenceKey, progress: str) -> None:
        number = worker_pb2.HandoffProgress.Value(f"HANDOFF_PROGRESS_{progress}")
        event = worker_pb2.HandoffEvent(key=wire.key_to_proto(key), progress=number, bytes_moved=64, transfer_s=0.01)
        self.say(handoff=event)

    def fail(self, key: SequenceKey, status: str, text: str) -> None:
        self.say(failed=worker_pb2.SequenceFailed(key=wire.key_to_proto(key), status=status, message=text))


class Reader:
    """Iterates over a stream, and passes on what else it can."""

    def __init__(self, stream: TokenStream) -> None:
        self.stream = stream
        self.cancel = stream.cancel
        self._news = asyncio.Event()
        self._ended = False
        stream.listen(self._news.set)

    def finish(self, num_tokens: int) -> Finished:
        self._ended = True
        return self.stream.finish(num_tokens)

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> TokenDelta | Finished:
        while not self._ended:
            self._news.clear()
            try:
                event = self.stream.poll()
            except ServingError:
                self._ended = True
                raise
            if event is not None:
                self._ended = isinstance(event, Finished)
                return event
            await self._news.wait()
        assert self.stream.poll() is None
        raise StopAsyncIteration


class Cluster:
    """A core and its fake workers, running."""

    def __init__(self, core: Core, workers: list[FakeWorker]) -> None:
        self.core = core
        self.workers = workers
        self.clock = MonotonicClock()
        self.num_probes = 0

    @property
    def prefill(self) -> FakeWorker:
        return next(worker for worker in self.workers if worker.role == "prefill")

    @property
    def decode(self) -> FakeWorker:
        return next(worker for worker in self.workers if worker.role == "decode")

    def request(self, request_id: str = "r", **changes: Any) -> RouterRequest:
        now_s = self.clock.now()
        values: dict[str, Any] = {
            "request_id": request_id, "prompt_token_ids": tuple(range(40)), "sampling": SamplingParams(max_tokens=8),
            "slo": Slo(), "priority": 0, "tenant": "", "received_s": now_s, "deadline_s": now_s + 30.0,
        }  # fmt: skip
        return RouterRequest(**(values | changes))

    def submit(self, request_id: str = "r", **changes: Any) -> Reader:
        core: RouterCore = self.core
        return Reader(core.submit(self.request(request_id, **changes)))

    async def lost(self, worker: FakeWorker) -> None:
        """Until the router has seen the end of it."""
        while self.core.fleet.get(worker.worker_id) is not None:
            self.core.keeper.changed.clear()
            await asyncio.wait_for(self.core.keeper.changed.wait(), PATIENCE_S)

    async def heard(self, worker: FakeWorker) -> None:
        """Until the router has handled all that the worker said: its messages come in order, so one more must."""
        self.num_probes += 1
        stream = self.submit(f"probe-{self.num_probes}")
        key = await self.prefill.told(f"probe-{self.num_probes}")
        if worker.role == "prefill":
            worker.tokens(key, 0, 1, finish=FinishReason.STOP)
        else:
            await worker.told(key.request_id)
            self.prefill.tokens(key, 0, 1)
            worker.tokens(key, 1, 2, finish=FinishReason.STOP)
        await read_all(stream)

    def metrics(self) -> str:
        return self.core.metrics_text().decode()


async def read_all(stream: Reader, already: int = 0) -> tuple[list[int], Finished]:
    """Every token after those read already, and the end; no gap in the indexes, nothing after the end."""
    tokens: list[int] = []
    async with asyncio.timeout(PATIENCE_S):
        async for event in stream:
            if isinstance(event, Finished):
                with pytest.raises(StopAsyncIteration):
                    await anext(aiter(stream))
                return tokens, event
            assert isinstance(event, TokenDelta) and event.first_index == already + len(tokens)
            tokens += event.token_ids
    raise AssertionError("the stream ended without an end")


async def read_tokens(stream: Reader, count: int) -> list[int]:
    """Tokens until there are `count`."""
    tokens: list[int] = []
    iterator = aiter(stream)
    async with asyncio.timeout(PATIENCE_S):
        while len(tokens) < count:
            event = await anext(iterator)
            assert isinstance(event, TokenDelta)
            tokens += event.token_ids
    return tokens


@asynccontextmanager
async def running_cluster(
    workers: list[FakeWorker], config: CoreConfig, *, secret: str = SECRET, ready: bool = True
) -> AsyncIterator[Cluster]:
    for worker in workers:
        await worker.start()
    core = Core([worker.address for worker in workers], secret, config)
    await core.start()
    try:
        if ready:
            await asyncio.wait_for(core.wait_ready(), PATIENCE_S)
        yield Cluster(core, workers)
        core.running.check(core.fleet)
        core.fleet.check()
    finally:
        await core.close()
        for worker in workers:
            await worker.kill()


class Log(logging.Handler):
    """What the core logs, line by line."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self._more = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self._more.set()

    async def until(self, words: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not any(words in line for line in self.lines):
                self._more.clear()
                await self._more.wait()


@contextmanager
def log_of_core() -> Iterator[Log]:
    log, logger = Log(), logging.getLogger("router.core")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(log)
    try:
        yield log
    finally:
        logger.removeHandler(log)
        logger.setLevel(level)


class Harness:
    """What a test needs of this file."""

    FakeWorker = FakeWorker
    Cluster = Cluster
    read_all = staticmethod(read_all)
    read_tokens = staticmethod(read_tokens)
    cluster = staticmethod(running_cluster)
    log = staticmethod(log_of_core)

    def run(
        self,
        prefill: int,
        decode: int,
        test: Callable[[Cluster], Coroutine[Any, Any, None]],
        config: CoreConfig | None = None,
    ) -> None:
        """Run a test against so many workers, all ready."""

        async def main() -> None:
            workers = [FakeWorker(f"prefill-{i}", "prefill") for i in range(prefill)]
            workers += [FakeWorker(f"decode-{i}", "decode") for i in range(decode)]
            async with running_cluster(workers, config or CoreConfig(tick_s=0.05)) as cluster:
                await test(cluster)

        asyncio.run(main())


@pytest.fixture
def harness() -> Harness:
    return Harness()
