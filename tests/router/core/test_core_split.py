"""The walk of a request: token 1 from prefill, the rest from decode, one end, nothing left behind."""

from __future__ import annotations

from typing import Any

from pdserve.ids import SequenceKey
from pdserve.sampling import FinishReason, SamplingParams
from pdserve.v1 import worker_pb2
from router.core.config import CoreConfig
from scheduling.routing import RoutingConfig


def test_a_split_request_is_served(harness: Any) -> None:
    """P and D are told at once and of each other; tokens come in order; P's FREED is awaited, nobody is aborted."""

    async def walk(cluster: Any) -> None:
        prefill, decode = cluster.prefill, cluster.decode
        stream = cluster.submit(sampling=SamplingParams(max_tokens=3, seed=9), priority=2, tenant="t")
        key = await prefill.told("r")
        assert await decode.told("r") == key == SequenceKey("r", 1)
        asked_p, asked_d = prefill.submits[key], decode.submits[key]
        assert asked_p.mode == worker_pb2.SEQUENCE_MODE_PREFILL
        assert asked_d.mode == worker_pb2.SEQUENCE_MODE_DECODE
        assert (asked_p.peer.worker_id, asked_p.peer.boot_id) == ("decode-0", decode.boot_id)
        assert (asked_d.peer.worker_id, asked_d.peer.address) == ("prefill-0", prefill.address)
        assert list(asked_d.prompt_token_ids) == list(asked_p.prompt_token_ids) == list(range(40))
        assert asked_p.sampling == asked_d.sampling and asked_p.sampling.seed == 9
        assert 29.0 < asked_p.deadline_left_s <= 30.0
        assert (asked_p.tenant, asked_p.priority) == ("t", 2)

        prefill.tokens(key, 0, 11, queue_s=0.0, first_token_s=0.001, cached=16)
        assert await harness.read_tokens(stream, 1) == [11]  # before anything moved
        decode.handoff(key, "RESERVED")
        decode.handoff(key, "COMMITTED")
        prefill.handoff(key, "FREED")
        decode.tokens(key, 1, 12, queue_s=0.0, first_token_s=0.001)
        decode.tokens(key, 2, 13, finish=FinishReason.LENGTH)
        events = [event async for event in stream]
        end = events[-1]
        assert [token for event in events[:-1] for token in event.token_ids] == [12, 13]
        assert (end.finish_reason, end.num_tokens, end.cached_tokens) == (FinishReason.LENGTH, 3, 16)
        assert (end.timing.prefill_worker, end.timing.decode_worker) == ("prefill-0", "decode-0")
        assert end.timing.attempts == 1
        assert all(not worker.holding for worker in cluster.core.fleet)
        assert prefill.aborts == decode.aborts == []

    harness.run(1, 1, walk)


def test_without_prefill_workers_decode_does_it_all(harness: Any) -> None:
    """The colocated server is the same code with an empty pool."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit()
        key = await cluster.decode.told("r")
        asked = cluster.decode.submits[key]
        assert asked.mode == worker_pb2.SEQUENCE_MODE_FULL and not asked.HasField("peer")
        cluster.decode.tokens(key, 0, 1, queue_s=0.0, first_token_s=0.0)
        cluster.decode.tokens(key, 1, 2, 3, finish=FinishReason.STOP)
        tokens, end = await harness.read_all(stream)
        assert tokens == [1, 2, 3] and end.finish_reason is FinishReason.STOP
        assert end.timing.prefill_worker == end.timing.decode_worker == "decode-0"
        assert end.timing.transfer_s == end.timing.decode_wait_s == 0.0

    harness.run(0, 1, walk)


def test_a_short_prompt_stays_on_decode_when_configured(harness: Any) -> None:
    """Not worth the trip: mode FULL beside a live prefill worker."""

    async def walk(cluster: Any) -> None:
        cluster.submit()
        key = await cluster.decode.told("r")
        assert cluster.decode.submits[key].mode == worker_pb2.SEQUENCE_MODE_FULL
        assert not cluster.prefill.submits

    harness.run(1, 1, walk, CoreConfig(routing=RoutingConfig(local_prefill_max_tokens=40)))


def test_an_end_at_token_one_releases_the_reservation(harness: Any) -> None:
    """Nothing moves; D is told to let go; the same worker counts for both phases."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit(sampling=SamplingParams(max_tokens=1))
        key = await cluster.prefill.told("r")
        cluster.prefill.tokens(key, 0, 5, finish=FinishReason.LENGTH, queue_s=0.0, first_token_s=0.0)
        tokens, end = await harness.read_all(stream)
        assert tokens == [5] and end.timing.tpot_s == 0.0
        assert end.timing.decode_worker == "prefill-0"
        await cluster.decode.aborted("r")
        assert cluster.prefill.aborts == []

    harness.run(1, 1, walk)


def test_token_two_may_overtake_token_one(harness: Any) -> None:
    """Two connections, one order."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit()
        key = await cluster.decode.told("r")
        cluster.decode.tokens(key, 2, 13, finish=FinishReason.STOP)
        cluster.decode.tokens(key, 1, 12)
        await cluster.prefill.told("r")
        cluster.prefill.tokens(key, 0, 11)
        tokens, end = await harness.read_all(stream)
        assert tokens == [11, 12, 13] and end.num_tokens == 3

    harness.run(1, 1, walk)
