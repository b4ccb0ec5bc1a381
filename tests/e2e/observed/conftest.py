"""A router's core and mock workers on the test's own event loop, whose delays a test decides."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from decode_worker.policy import DECODE
from pdserve.clock import MonotonicClock
from pdserve.config import WorkerConfig, WorkerStart
from pdserve.errors import ServingError
from pdserve.sampling import SamplingParams
from pdserve.slo import Slo
from prefill_worker.policy import PREFILL
from router.core.config import CoreConfig
from router.core.core import Core
from router.core.stream import RequestStream
from router.interface import Finished, RouterRequest
from router.record import RequestRecord
from scheduling.latency import LatencyCoefficients, LatencyModel
from scheduling.routing import RoutingConfig
from worker.assembly import BuiltEngine
from worker.build import build_engine
from worker.process import Ready, run_worker

SECRET = "s3cret"
PATIENCE_S = 20.0
CHUNK = 64  # tokens of a step
PROFILE = {"base_s": 0.001, "per_prefill_token_s": 5e-5, "per_decode_sequence_s": 1e-4, "per_context_token_s": 0.0}


class Observed:
    """The running cluster, and the records of all that ended."""

    def __init__(self, engines: dict[str, BuiltEngine]) -> None:
        self.engines = engines
        self.records: dict[str, RequestRecord] = {}
        self.core: Core
        self.clock = MonotonicClock()
        self._ended = asyncio.Condition()
        self._count = 0

    def record(self, record: RequestRecord) -> None:
        assert record.request_id not in self.records, "ended twice"
        self.records[record.request_id] = record

    def submit(
        self, prompt_tokens: int, max_tokens: int, slo: Slo = Slo(), **changes: Any
    ) -> tuple[str, RequestStream]:
        """Every prompt is another, unless `prompt` says which."""
        self._count += 1
        name = f"r{self._count}"
        prompt = changes.pop("prompt", self._count)
        ids = tuple((prompt * 7919 + n * 31) % 2000 for n in range(prompt_tokens))
        now_s = self.clock.now()
        values: dict[str, Any] = {
            "request_id": name, "prompt_token_ids": ids, "slo": slo, "priority": 0, "tenant": "default",
            "sampling": SamplingParams(max_tokens=max_tokens), "received_s": now_s,
            "deadline_s": now_s + changes.pop("deadline_s", 30.0),
        }  # fmt: skip
        return name, self.core.submit(RouterRequest(**(values | changes)))

    async def end_of(self, submitted: tuple[str, RequestStream]) -> RequestRecord:
        """Its record, once it has ended."""
        name, stream = submitted
        news = asyncio.Event()
        stream.listen(news.set)
        async with asyncio.timeout(PATIENCE_S):
            while name not in self.records:
                news.clear()
                try:
                    while (event := stream.poll()) is not None:
                        if isinstance(event, Finished):
                            break
                except ServingError:
                    pass
                if name not in self.records:
                    await news.wait()
        return self.records[name]

    async def run(self, prompt_tokens: int, max_tokens: int, slo: Slo = Slo(), **changes: Any) -> RequestRecord:
        return await self.end_of(self.submit(prompt_tokens, max_tokens, slo, **changes))

    async def measured(self) -> None:
        """Until the router knows how fast every worker is."""
        for prompt_tokens in (16, 32, 48, 64, 24, 64, 128):
            await self.run(prompt_tokens, 4)
        async with asyncio.timeout(PATIENCE_S):
            while not all(worker.load().latency.coefficients.known for worker in self.core.fleet):  # noqa: ASYNC110
                await asyncio.sleep(0.05)  # statuses come once a second

    def slow_down(self, worker_id: str, **coefficients: float) -> None:
        """From its next step on, unknown to the router until the next statuses."""
        runner: Any = self.engines[worker_id].core.runner
        runner._latency = LatencyModel(LatencyCoefficients(**(PROFILE | coefficients)))


Launch = Callable[..., AbstractAsyncContextManager[Observed]]


@pytest.fixture
def observe(tmp_path: Path) -> Launch:
    """`async with observe(prefill=1, decode=1) as cluster`; `decode_changes` are settings of decode workers."""

    @asynccontextmanager
    async def launch(
        prefill: int = 1,
        decode: int = 1,
        decode_changes: Mapping[str, Any] | None = None,
        local_prefill_max_tokens: int = 0,
    ) -> AsyncIterator[Observed]:
        profile = tmp_path / "profile.json"
        profile.write_text(json.dumps(PROFILE))
        config = WorkerConfig(block_size=4, max_num_seqs=32, max_num_batched_tokens=CHUNK, max_model_len=1024,
                              kv_bytes=1 << 20, kv_transport="shm", threads=1, mock=str(profile))  # fmt: skip
        stop, engines, addresses = asyncio.Event(), dict[str, BuiltEngine](), []
        async with asyncio.TaskGroup() as group:
            for role, policy, count in (("prefill", PREFILL, prefill), ("decode", DECODE, decode)):
                for number in range(count):
                    own = replace(config, **(decode_changes or {})) if role == "decode" else config
                    start = WorkerStart(f"{role}-{number}", role, "", "cpu", SECRET, "127.0.0.1:0", own)
                    built = engines[start.worker_id] = build_engine(start, MonotonicClock())
                    ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
                    group.create_task(run_worker(policy, start, built, stop, ready.set_result))
                    addresses.append((await ready).address)
            cluster = Observed(engines)
            routing = RoutingConfig(local_prefill_max_tokens=local_prefill_max_tokens)
            cluster.core = Core(addresses, SECRET, CoreConfig(routing=routing), sinks=[cluster])
            await cluster.core.start()
            try:
                await asyncio.wait_for(cluster.core.wait_ready(), PATIENCE_S)
                yield cluster
            finally:
                await cluster.core.close()
                stop.set()

    return launch
