"""Whatever workers and clients do, in whatever order: one end per request, tokens in order, nothing left held."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pdserve import wire
from pdserve.clock import MonotonicClock
from pdserve.errors import PeerLost, ServingError
from pdserve.ids import SequenceKey, new_boot_id
from pdserve.sampling import FinishReason, SamplingParams
from pdserve.slo import Slo
from pdserve.v1 import worker_pb2
from router.core.config import CoreConfig
from router.core.fleet import Fleet, Worker
from router.core.messages import (
    HandoffReport,
    Progress,
    PromptStarted,
    SequenceDelta,
    SequenceFailure,
    SequenceTimes,
    StepReport,
    WorkerIdentity,
)
from router.core.requests import Requests
from router.core.running import RunningRequests
from router.core.worker_events import WorkerEvents
from router.interface import Finished, RouterRequest, TokenDelta, TokenStream
from router.metrics import RouterMetrics
from router.record import Outcome, RequestRecord, Transfer
from router.worker_series import WorkerSnapshot
from scheduling.routing import Role
from scheduling.routing_policies import LeastPredictedLatency

LENGTH = 6  # tokens of every request
REQUESTS = 6
CONFIG = CoreConfig(freed_grace_s=0.0, peer_grace_s=0.0, gap_timeout_s=0.0, max_in_flight=REQUESTS)


class HonestWorker:
    """The other end of a `Worker`: what it really holds, by the contract."""

    def __init__(self, name: str, role: Role) -> None:
        self.identity = WorkerIdentity(
            name, new_boot_id(), role, "cpu", 1, name, b"l" * 32, 30, 16, 64, 8, 512, 999, 9, prefix_caching=True
        )
        self.held: dict[SequenceKey, worker_pb2.SubmitSequence] = {}
        self.sent: dict[SequenceKey, int] = {}  # tokens

    def send(self, message: worker_pb2.RouterMessage) -> None:
        kind = message.WhichOneof("message")
        if kind == "submit":
            key = wire.key_from_proto(message.submit.key)
            assert key not in self.held
            self.held[key] = message.submit
            self.sent[key] = 1 if message.submit.mode == worker_pb2.SEQUENCE_MODE_DECODE else 0
        elif kind == "abort":
            self.held.pop(wire.key_from_proto(message.abort.key), None)


class Nobody:
    def snapshots(self) -> list[WorkerSnapshot]:
        return []


class Broken:
    """A sink that fails harms nobody."""

    def record(self, record: RequestRecord) -> None:
        raise OSError("disk full")


class World:
    """A router's state, its workers and its clients, without sockets."""

    def __init__(self, seed: int, prefill: int, decode: int) -> None:
        self.rng = random.Random(seed)
        self.clock = MonotonicClock()
        self.fleet = Fleet(self.clock)
        self.metrics = RouterMetrics(Nobody())
        self.records: list[RequestRecord] = []
        self.num_rejected = 0
        sinks = (self.metrics, Broken(), self)
        self.running = RunningRequests(self.fleet.prefixes, self.metrics, sinks, self.clock, CONFIG.freed_grace_s)
        policy = LeastPredictedLatency()
        self.requests = Requests(CONFIG, self.fleet, policy, self.running, self.metrics, sinks, self.clock)
        self.events = WorkerEvents(CONFIG, self.running, self.fleet.prefixes, self.metrics, self.clock)
        roles = [Role.PREFILL] * prefill + [Role.DECODE] * decode
        ends = [HonestWorker(f"{role.value}-{n}", role) for n, role in enumerate(roles)]
        self.workers: list[tuple[Worker, HonestWorker]] = [
            (self.fleet.admit(end.identity, end), end)  # type: ignore[arg-type]
            for end in ends
        ]
        self.streams: list[Any] = []

    def record(self, record: RequestRecord) -> None:
        self.records.append(record)

    def step(self) -> None:
        """One random thing happens."""
        choice = self.rng.random()
        if choice < 0.15 and len(self.streams) < REQUESTS:
            self.submit()
        elif choice < 0.18 and self.streams:
            self.rng.choice(self.streams).cancel()
        elif choice < 0.20 and self.streams:
            self.requests.abort(f"r{self.rng.randrange(len(self.streams))}", "")
        elif choice < 0.22 and self.workers:
            self.kill(self.rng.choice(self.workers))
        elif self.workers:
            self.work(*self.rng.choice(self.workers))
        self.running.check(self.fleet)
        self.fleet.check()

    def submit(self) -> None:
        now_s = self.clock.now()
        prompt = tuple(self.rng.choices((1, 2), k=2)) * self.rng.choice((1, 150, 200))
        request = RouterRequest(
            f"r{len(self.streams)}", prompt, SamplingParams(max_tokens=LENGTH), Slo(), 0, "", now_s, now_s + 60.0
        )
        try:
            self.streams.append(self.requests.submit(request))
        except ServingError:
            assert not self.fleet.has(Role.DECODE)
            self.num_rejected += 1

    def kill(self, pair: tuple[Worker, HonestWorker]) -> None:
        self.workers.remove(pair)
        self.fleet.remove(pair[0])
        self.events.worker_lost(pair[0])

    def work(self, worker: Worker, end: HonestWorker) -> None:
        """One worker says one thing about one sequence that it holds, or repeats itself."""
        if not end.held:
            return
        key = self.rng.choice(sorted(end.held))
        mode, sent, act = end.held[key].mode, end.sent[key], self.rng.random()
        if act < 0.04:
            del end.held[key]
            self.events.handle(worker, SequenceFailure(key, PeerLost("x")))
        elif act < 0.2 and sent > 0:
            self.say(worker, key, self.rng.randrange(sent), None)
        elif mode == worker_pb2.SEQUENCE_MODE_PREFILL and sent == 1:
            if act < 0.6:  # in truth after D's commit; early is only harder
                del end.held[key]
                self.events.handle(worker, HandoffReport(key, Progress.FREED))
        elif mode == worker_pb2.SEQUENCE_MODE_DECODE and sent == 1 and act < 0.5:
            progress = Progress.RESERVED if act < 0.35 else Progress.COMMITTED
            self.events.handle(worker, HandoffReport(key, progress, Transfer(1, 0, 0.1, 0.1, "shm")))
        elif sent == 0 and act < 0.4:
            self.events.handle(worker, StepReport((), started=(PromptStarted(key.attempt, self.rng.random()),)))
        else:
            last = sent + 1 == LENGTH or (sent == 0 and act > 0.95)
            end.sent[key] += 1
            if last:
                del end.held[key]
            self.say(worker, key, sent, FinishReason.LENGTH if last else None)

    def say(self, worker: Worker, key: SequenceKey, index: int, finish: FinishReason | None) -> None:
        token = hash((key.request_id, index)) % 1000
        cached = self.rng.choice((0, 128))
        times = SequenceTimes(self.rng.random(), self.rng.random(), cached) if self.rng.random() < 0.3 else None
        self.events.handle(worker, StepReport((SequenceDelta(key, index, (token,), (), finish, times),)))


def read(stream: TokenStream, request_id: str) -> Finished | ServingError:
    """All of a stream that has ended, each token checked, and its one end."""
    count, end = 0, None
    try:
        while (event := stream.poll()) is not None:
            assert end is None, "something after the end"
            if isinstance(event, TokenDelta):
                expected = [hash((request_id, count + n)) % 1000 for n in range(len(event.token_ids))]
                assert event.first_index == count and list(event.token_ids) == expected
                count += len(event.token_ids)
            else:
                end = event
    except ServingError as error:
        assert end is None
        return error
    assert isinstance(end, Finished) and end.num_tokens == count
    assert stream.poll() is None
    return end


def check_records(world: World, ends: list[Finished | ServingError]) -> None:
    """One record for each request, which the metrics agree with; its phases add up to its end."""
    ran = [record for record in world.records if record.outcome is not Outcome.REJECTED]
    assert sorted(record.request_id for record in ran) == [f"r{n}" for n in range(len(ends))]
    assert len(world.records) - len(ran) == world.num_rejected
    text = world.metrics.text().decode()
    for outcome in Outcome:
        counted = float(text.split(f'pdserve_requests_total{{outcome="{outcome.value}"}} ')[1].split()[0])
        assert counted == sum(record.outcome is outcome for record in world.records)
    for record in world.records:
        timing = record.timing
        phases = (timing.queue_s, timing.prefill_s, timing.transfer_s, timing.decode_wait_s, timing.decode_s)
        assert abs(sum(phases) - record.ended_s) < 1e-9 and min(phases) >= -1e-12
        if record.completion_tokens:
            assert abs(timing.queue_s + timing.prefill_s - timing.ttft_s) < 1e-9
            assert record.first_token_s == timing.ttft_s


@settings(max_examples=100, deadline=None)
@example(1241, 2, 3, 23)  # the end at token 1 came with a token 2 that waited for it
@given(st.integers(0, 2**32), st.integers(0, 2), st.integers(1, 3), st.integers(10, 250))
def test_one_end_for_each_and_nothing_left(seed: int, prefill: int, decode: int, steps: int) -> None:
    """Random submits, tokens, repeats, commits, failures, cancels, aborts and deaths."""

    async def main() -> None:
        world = World(seed, prefill, decode)
        for _ in range(steps):
            world.step()
            if world.rng.random() < 0.2:
                await asyncio.sleep(0)  # timers of no length fire
        world.running.fail_all("over")
        async with asyncio.timeout(5.0):
            await world.running.wait_idle()
            ends = [read(stream, f"r{n}") for n, stream in enumerate(world.streams)]
        await asyncio.sleep(0.001)  # the last aborts of sources that never said FREED
        for worker, end in world.workers:
            assert not end.held and not worker.holding, f"{worker.id} still holds {list(end.held)}"
        assert len(ends) == len(world.streams) and len(world.running) == 0
        check_records(world, ends)

    asyncio.run(main())
