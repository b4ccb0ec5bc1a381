"""However a request ends: once, in time, told to the client, and with every worker told to let go."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pdserve.errors import Cancelled, DeadlineExceeded, QueueFull, Stopping
from pdserve.sampling import FinishReason, SamplingParams
from router.core.config import CoreConfig


async def walk_to(cluster: Any, harness: Any, phase: str, stream: Any) -> int:
    """Bring request `r` into a phase; how many tokens were read."""
    key = await cluster.prefill.told("r")
    await cluster.decode.told("r")
    if phase == "prefilling":
        return 0
    cluster.prefill.tokens(key, 0, 11)
    await harness.read_tokens(stream, 1)
    if phase == "transferring":
        return 1
    cluster.decode.handoff(key, "COMMITTED")
    await cluster.heard(cluster.decode)
    if phase == "committed":
        return 1
    cluster.decode.tokens(key, 1, 12)
    await harness.read_tokens(stream, 1)
    return 2


PHASES = ("prefilling", "transferring", "committed", "streaming")


@pytest.mark.parametrize("phase", PHASES)
def test_cancel_frees_both_workers_in_every_phase(harness: Any, phase: str) -> None:
    """Both are told to abort; the stream says Cancelled; a second cancel and late tokens change nothing."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit()
        count = await walk_to(cluster, harness, phase, stream)
        stream.cancel()
        await cluster.prefill.aborted("r")
        await cluster.decode.aborted("r")
        stream.cancel()
        key = await cluster.decode.told("r")
        cluster.decode.tokens(key, max(1, count), 77, finish=FinishReason.STOP)
        await cluster.heard(cluster.decode)
        with pytest.raises(Cancelled):
            await harness.read_all(stream, count)
        assert cluster.prefill.aborts.count(key) == cluster.decode.aborts.count(key) == 1
        assert 'pdserve_requests_total{outcome="cancelled"} 1.0' in cluster.metrics()
        assert not any(key in worker.holding for worker in cluster.core.fleet)

    harness.run(1, 1, walk, CoreConfig(tick_s=0.05, freed_grace_s=30.0))


@pytest.mark.parametrize("phase", PHASES)
def test_the_deadline_ends_it_in_every_phase(harness: Any, phase: str) -> None:
    """DEADLINE_EXCEEDED within 100 ms of it, both workers told."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit(deadline_s=cluster.clock.now() + 0.6)
        ends_s = cluster.clock.now() + 0.6
        count = await walk_to(cluster, harness, phase, stream)
        with pytest.raises(DeadlineExceeded, match=r"within 0\.[56]"):
            await harness.read_all(stream, count)
        assert abs(cluster.clock.now() - ends_s) < 0.3  # 0.1 on a machine of one's own
        await cluster.prefill.aborted("r")
        await cluster.decode.aborted("r")
        assert 'pdserve_requests_total{outcome="deadline"} 1.0' in cluster.metrics()
        assert 'verdict="missed"} 1.0' in cluster.metrics()

    harness.run(1, 1, walk)


def test_abort_by_another_call_ends_with_reason_abort(harness: Any) -> None:
    """Only for the tenant whose it is; tokens so far stay."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit(tenant="a")
        key = await cluster.prefill.told("r")
        cluster.prefill.tokens(key, 0, 11)
        await cluster.heard(cluster.prefill)
        assert not cluster.core.abort("r", "b")
        assert not cluster.core.abort("unknown", "a")
        assert cluster.core.abort("r", "a")
        assert not cluster.core.abort("r", "a")
        tokens, end = await harness.read_all(stream)
        assert tokens == [11] and end.finish_reason is FinishReason.ABORT and end.num_tokens == 1
        await cluster.prefill.aborted("r")
        await cluster.decode.aborted("r")

    harness.run(1, 1, walk)


def test_abort_before_the_first_token(harness: Any) -> None:
    """No token: all of the time was queue, and the phases still add up."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit()
        await cluster.prefill.told("r")
        assert cluster.core.abort("r", "")
        tokens, end = await harness.read_all(stream)
        assert tokens == [] and end.num_tokens == 0
        assert end.timing.queue_s > 0.0 and end.timing.ttft_s == end.timing.decode_s == 0.0

    harness.run(1, 1, walk)


def test_a_stop_string_trims_the_end(harness: Any) -> None:
    """The front has enough: D is cancelled, the usage and the times are those of the tokens that count."""

    async def walk(cluster: Any) -> None:
        received_s = cluster.clock.now()
        stream = cluster.submit(received_s=received_s)
        key = await cluster.decode.told("r")
        await cluster.prefill.told("r")
        cluster.prefill.tokens(key, 0, 11)
        cluster.decode.tokens(key, 1, 12)
        await harness.read_tokens(stream, 2)
        second_s = cluster.clock.now()
        cluster.decode.tokens(key, 2, 13)
        await harness.read_tokens(stream, 1)
        end = stream.finish(2)
        assert (end.finish_reason, end.num_tokens) == (FinishReason.STOP, 2)
        assert end.timing.ttft_s + end.timing.tpot_s <= second_s - received_s
        await cluster.decode.aborted("r")
        assert [event async for event in stream] == []
        assert 'pdserve_requests_total{outcome="finished"} 1.0' in cluster.metrics()

    harness.run(1, 1, walk)


def test_a_stop_string_in_the_last_tokens_of_an_ended_request(harness: Any) -> None:
    """The request had ended by itself before the front looked: the answer is trimmed, nothing is counted twice."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit()
        key = await cluster.decode.told("r")
        cluster.decode.tokens(key, 0, 11)
        cluster.decode.tokens(key, 1, 12, 13, finish=FinishReason.LENGTH)
        await harness.read_tokens(stream, 3)
        end = stream.finish(2)
        assert (end.finish_reason, end.num_tokens) == (FinishReason.STOP, 2)
        assert [event async for event in stream] == []
        assert 'pdserve_requests_total{outcome="finished"} 1.0' in cluster.metrics()

    harness.run(0, 1, walk)


def test_a_client_that_does_not_read_slows_nobody_and_is_cut_off(harness: Any) -> None:
    """Its tokens wait as one delta; others stream on; after the time it is cancelled and its worker freed."""

    async def walk(cluster: Any) -> None:
        slow = cluster.submit("slow", sampling=SamplingParams(max_tokens=100))
        fast = cluster.submit("fast", sampling=SamplingParams(max_tokens=100))
        slow_key, fast_key = await cluster.decode.told("slow"), await cluster.decode.told("fast")
        for index in range(50):
            cluster.decode.tokens(slow_key, index, index)
            cluster.decode.tokens(fast_key, index, index)
        assert await harness.read_tokens(fast, 50) == list(range(50))
        await cluster.decode.aborted("slow")
        first = await anext(aiter(slow))
        assert first.first_index == 0 and list(first.token_ids) == list(range(50))
        with pytest.raises(Cancelled, match="50 tokens unread"):
            await anext(aiter(slow))
        cluster.decode.tokens(fast_key, 50, 50, finish=FinishReason.STOP)
        assert (await harness.read_all(fast, 50))[0] == [50]

    harness.run(0, 1, walk, CoreConfig(tick_s=0.02, stall_tokens=50, stall_timeout_s=0.2))


def test_drain_refuses_new_and_waits_for_the_running(harness: Any) -> None:
    """True when all ended in time."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit()
        key = await cluster.decode.told("r")
        draining = asyncio.create_task(cluster.core.drain(5.0))
        await asyncio.sleep(0)
        assert not cluster.core.is_ready()
        with pytest.raises(Stopping, match="draining"):
            cluster.submit("late")
        cluster.decode.tokens(key, 0, 1, finish=FinishReason.STOP)
        await harness.read_all(stream)
        assert await draining

    harness.run(0, 1, walk)


def test_what_does_not_end_in_time_is_ended(harness: Any) -> None:
    """Drain past its time: UNAVAILABLE, and the worker is told before the session closes."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit()
        await cluster.decode.told("r")
        other = cluster.submit("other")
        await cluster.decode.told("other")
        assert not await cluster.core.drain(0.05)
        for one in (stream, other):
            with pytest.raises(Stopping, match="stopping"):
                await harness.read_all(one)
        await cluster.decode.aborted("r")
        await cluster.decode.aborted("other")

    harness.run(0, 1, walk)


def test_close_ends_what_runs_and_tells_the_workers(harness: Any) -> None:
    """Without a drain: every client has an answer, every worker its abort."""

    async def walk(cluster: Any) -> None:
        stream = cluster.submit()
        await cluster.decode.told("r")
        await cluster.core.close()
        with pytest.raises(Stopping, match="the router stopped"):
            await harness.read_all(stream)
        await cluster.decode.aborted("r")
        with pytest.raises(Stopping):
            cluster.submit("late")

    harness.run(0, 1, walk)


def test_the_number_of_running_requests_is_bounded(harness: Any) -> None:
    """One more is RESOURCE_EXHAUSTED with a delay; an end makes room."""

    async def walk(cluster: Any) -> None:
        first = cluster.submit("a")
        cluster.submit("b")
        with pytest.raises(QueueFull, match="2 requests are running, limit 2") as caught:
            cluster.submit("c")
        assert caught.value.retry_after_s == 1.0
        first.cancel()
        cluster.submit("c")
        assert 'pdserve_requests_total{outcome="rejected"} 1.0' in cluster.metrics()

    harness.run(1, 1, walk, CoreConfig(max_in_flight=2))
