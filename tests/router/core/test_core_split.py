"""The walk of a request: token 1 from prefill, the rest from decode, one end, nothing left behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pdserve.errors import CapacityError, HandoffError, InvariantViolation
from pdserve.ids import SequenceKey
from pdserve.sampling import FinishReason, SamplingParams
from pdserve.slo import Blame, Slo
from pdserve.v1 import worker_pb2
from router.core.config import CoreConfig
from scheduling.routing import RoutingConfig


def test_a_split_request_is_served(harness: Any) -> None:
    """P and D are told at once and of each other; tokens come in order; P's FREED is awaited, nobody is aborted."""

    async def walk(cluster: Any) -> None:
        prefill, decode = cluster.prefill, cluster.decode
        stream = cluster.submit(sampling=SamplingParams(max_tokens=3, seed=9), priority=2, tenant="t")
        key = await prefill.told("r")
        assert await decode.told("r") == key and key.request_id == "r"
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
    """Two connections, one order; what came early waits."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit()
        key = await cluster.decode.told("r")
        await cluster.prefill.told("r")
        cluster.decode.tokens(key, 2, 13, finish=FinishReason.STOP)
        cluster.decode.tokens(key, 1, 12)
        await cluster.heard(cluster.decode)
        cluster.prefill.tokens(key, 0, 11)
        tokens, end = await harness.read_all(stream)
        assert tokens == [11, 12, 13] and end.num_tokens == 3

    harness.run(1, 1, walk)


def test_duplicates_and_strangers_are_dropped_and_counted(harness: Any) -> None:
    """Twice from D, D's claim to token 1, P's to token 2, another attempt's, an unknown request's: none goes out."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit()
        key = await cluster.decode.told("r")
        await cluster.prefill.told("r")
        cluster.decode.tokens(key, 0, 99)
        cluster.prefill.tokens(key, 1, 98)
        cluster.prefill.tokens(SequenceKey("r", key.attempt - 1), 0, 97)
        cluster.decode.tokens(SequenceKey("unknown", key.attempt - 2), 0, 96)
        cluster.prefill.tokens(key, 0, 11)
        cluster.prefill.tokens(key, 0, 11)
        await cluster.heard(cluster.prefill)
        cluster.decode.tokens(key, 1, 12)
        cluster.decode.tokens(key, 1, 12, 13)
        cluster.decode.tokens(key, 1, 12, 13)
        cluster.decode.tokens(key, 3, 14, finish=FinishReason.STOP)
        tokens, _ = await harness.read_all(stream)
        assert tokens == [11, 12, 13, 14]
        text = cluster.metrics()
        assert 'pdserve_router_stale_messages_total{kind="duplicate_token"} 4.0' in text
        assert 'pdserve_router_stale_messages_total{kind="foreign_token"} 2.0' in text
        assert 'pdserve_router_stale_messages_total{kind="sequence"} 2.0' in text

    harness.run(1, 1, walk)


def test_an_id_used_again_does_not_meet_its_past(harness: Any) -> None:
    """Cancelled and sent again at once, with another prompt: tokens of the old sequence are not the new one's."""

    async def walk(cluster: Any) -> None:
        old = cluster.submit()
        old_key = await cluster.decode.told("r")
        old.cancel()
        new = cluster.submit(prompt_token_ids=(7, 8, 9))
        new_key = await cluster.decode.told("r", after=old_key)
        cluster.decode.tokens(old_key, 0, 99, finish=FinishReason.STOP)
        cluster.decode.fail(old_key, "INTERNAL", "late")
        cluster.decode.tokens(new_key, 0, 11, finish=FinishReason.STOP)
        tokens, end = await harness.read_all(new)
        assert tokens == [11] and end.timing.attempts == 1

    harness.run(0, 1, walk)


def test_a_gap_that_never_closes_is_a_failure(harness: Any) -> None:
    """Token 3 without token 2: UNAVAILABLE in time, both workers let go."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit()
        key = await cluster.prefill.told("r")
        await cluster.decode.told("r")
        cluster.prefill.tokens(key, 0, 11)
        cluster.decode.tokens(key, 2, 13)
        assert await harness.read_tokens(stream, 1) == [11]
        with pytest.raises(HandoffError, match="token 1 did not come"):
            await harness.read_all(stream, 1)
        await cluster.decode.aborted("r")
        await cluster.prefill.aborted("r")

    harness.run(1, 1, walk, CoreConfig(tick_s=0.05, gap_timeout_s=0.2))


def test_the_token_that_is_missing_now_is_named(harness: Any) -> None:
    """Token 3 overtook token 1: once that has come, it is token 2 that is waited for."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit()
        key = await cluster.prefill.told("r")
        await cluster.decode.told("r")
        cluster.decode.tokens(key, 2, 13)
        await asyncio.sleep(0.1)  # half of the time that a gap has
        cluster.prefill.tokens(key, 0, 11)
        assert await harness.read_tokens(stream, 1) == [11]
        with pytest.raises(HandoffError, match="token 1 did not come"):
            await harness.read_all(stream, 1)

    harness.run(1, 1, walk, CoreConfig(tick_s=0.05, gap_timeout_s=0.2))


def test_too_much_behind_a_gap_is_a_failure_at_once(harness: Any) -> None:
    """The buffer is bounded."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit()
        key = await cluster.decode.told("r")
        cluster.decode.tokens(key, 1, *range(11))
        with pytest.raises(InvariantViolation, match="11 tokens wait for token 0, limit 10"):
            await harness.read_all(stream)

    harness.run(1, 1, walk, CoreConfig(max_ahead_tokens=10))


def test_a_worker_that_gives_up_ends_the_request(harness: Any) -> None:
    """Its status and words reach the client; the other worker lets go, it is not told itself."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit()
        key = await cluster.decode.told("r")
        cluster.decode.fail(key, "RESOURCE_EXHAUSTED", "no room within the deadline")
        with pytest.raises(CapacityError, match="no room within the deadline"):
            await harness.read_all(stream)
        await cluster.prefill.aborted("r")
        assert cluster.decode.aborts == []

    harness.run(1, 1, walk)


def test_a_source_that_fails_after_the_commit_is_not_needed(harness: Any) -> None:
    """D owns the KV; P may say what it wants."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit()
        key = await cluster.prefill.told("r")
        await cluster.decode.told("r")
        cluster.prefill.tokens(key, 0, 11)
        assert await harness.read_tokens(stream, 1) == [11]
        cluster.decode.handoff(key, "COMMITTED")
        await cluster.heard(cluster.decode)
        cluster.prefill.fail(key, "UNAVAILABLE", "the pair is gone")
        await cluster.heard(cluster.prefill)
        cluster.decode.tokens(key, 1, 12, finish=FinishReason.STOP)
        _, end = await harness.read_all(stream, 1)
        assert end.num_tokens == 2

    harness.run(1, 1, walk)


def test_a_source_that_never_says_freed_is_told_to_abort(harness: Any) -> None:
    """After a moment in which it may read the commit."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit()
        key = await cluster.prefill.told("r")
        await cluster.decode.told("r")
        cluster.prefill.tokens(key, 0, 11)
        await harness.read_tokens(stream, 1)
        cluster.decode.tokens(key, 1, 12, finish=FinishReason.STOP)
        await harness.read_all(stream, 1)
        assert cluster.prefill.aborts == []
        await cluster.prefill.aborted("r")
        assert cluster.decode.aborts == []

    harness.run(1, 1, walk, CoreConfig(freed_grace_s=0.2))


def test_the_five_phases_add_up(harness: Any) -> None:
    """Router's instants and workers' durations make one account, and the verdict names the phase."""

    async def walk(cluster: Any) -> None:
        received_s = cluster.clock.now()
        slo = Slo(ttft_s=10.0, tpot_s=1e-6)
        stream = cluster.submit(received_s=received_s - 0.5, slo=slo, deadline_s=received_s + 20.0)
        key = await cluster.prefill.told("r")
        await cluster.decode.told("r")
        cluster.prefill.tokens(key, 0, 11, queue_s=0.1, first_token_s=0.2)
        await harness.read_tokens(stream, 1)
        first_s = cluster.clock.now()
        cluster.decode.handoff(key, "COMMITTED")
        await cluster.heard(cluster.decode)
        cluster.decode.tokens(key, 1, 12, queue_s=0.0, first_token_s=0.001)
        cluster.decode.tokens(key, 2, 13, finish=FinishReason.STOP)
        _, end = await harness.read_all(stream, 1)
        last_s = cluster.clock.now()
        timing = end.timing
        phases = timing.queue_s + timing.prefill_s + timing.transfer_s + timing.decode_wait_s + timing.decode_s
        assert phases == pytest.approx(timing.ttft_s + 2 * timing.tpot_s)
        assert timing.prefill_s == pytest.approx(0.2)
        assert 0.5 <= timing.ttft_s <= first_s - received_s + 0.5
        assert phases <= last_s - received_s + 0.5
        assert timing.transfer_s > 0.0 and timing.decode_wait_s == 0.0
        assert end.verdict.met_ttft and not end.verdict.met_tpot
        assert end.verdict.blame in {Blame.TRANSFER, Blame.DECODE}
        text = cluster.metrics()
        assert (
            'blame="' + end.verdict.blame.value + '",slo_class="default",tenant="default",verdict="missed"} 1.0' in text
        )
        assert 'pdserve_request_phase_seconds_count{phase="transfer"} 2.0' in text

    harness.run(1, 1, walk)
