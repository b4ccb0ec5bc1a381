"""Peers that may not talk, and routers that leave: refused or cleaned up after, and nobody else is disturbed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import grpc
import pytest

from pdserve.ids import SequenceKey
from pdserve.sampling import SamplingParams
from pdserve.v1 import worker_pb2 as pb
from pdserve.v1 import worker_pb2_grpc
from pdserve.wire import key_to_proto

Launch = Callable[..., AbstractAsyncContextManager[Any]]
GREEDY = SamplingParams(max_tokens=6)


def prompt(seed: int, n: int = 100) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(2048) for _ in range(n)]


def test_workers_of_different_layouts_refuse_each_other_and_serve_on(launch_workers: Launch) -> None:
    async def run() -> None:
        async with launch_workers(decode_changes={"block_size": 8}) as cluster:
            (p,), (d,) = cluster.prefill, cluster.decode
            key = SequenceKey("mixed")
            cluster.split(key, p, d, prompt(1), GREEDY)
            await p.until(lambda: key in p.failed)
            assert p.failed[key].status == "FAILED_PRECONDITION"
            assert "layout" in p.failed[key].message
            d.abort(key)
            full = SequenceKey("full")
            d.submit(full, pb.SEQUENCE_MODE_FULL, prompt(1), GREEDY)
            await d.until(lambda: full in d.finished)
            await cluster.settled()

    asyncio.run(run())


def test_an_offer_to_an_earlier_start_of_a_worker_is_refused(launch_workers: Launch) -> None:
    async def run() -> None:
        async with launch_workers() as cluster:
            (p,), (d,) = cluster.prefill, cluster.decode
            true, key = d.ready, SequenceKey("late")
            d.ready = replace(true, boot_id=b"x" * 16)
            p.submit(key, pb.SEQUENCE_MODE_PREFILL, prompt(2), GREEDY, d)
            await p.until(lambda: key in p.failed)
            assert p.failed[key].status == "UNAVAILABLE"
            d.ready = true
            again = SequenceKey("now")
            cluster.split(again, p, d, prompt(2), GREEDY)
            await d.until(lambda: again in d.finished)
            await cluster.settled()

    asyncio.run(run())


def test_an_offer_by_another_worker_than_the_router_named_is_refused(launch_workers: Launch) -> None:
    async def run() -> None:
        async with launch_workers(prefill=2) as cluster:
            (p, other), (d,) = cluster.prefill, cluster.decode
            key = SequenceKey("r")
            d.submit(key, pb.SEQUENCE_MODE_DECODE, prompt(3), GREEDY, p)
            other.submit(key, pb.SEQUENCE_MODE_PREFILL, prompt(3), GREEDY, d)
            await other.until(lambda: key in other.failed)
            assert "another worker" in other.failed[key].message
            p.submit(key, pb.SEQUENCE_MODE_PREFILL, prompt(3), GREEDY, d)
            await d.until(lambda: key in d.finished)
            await cluster.settled()

    asyncio.run(run())


@pytest.mark.parametrize("rpc", ["Session", "Handoff"])
@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer wrong"),), (("authorization", "s3cret"),)])
def test_without_the_cluster_secret_nothing_is_answered(launch_workers: Launch, rpc: str, metadata: Any) -> None:
    async def nothing() -> AsyncIterator[Any]:
        await asyncio.sleep(3600)
        yield None

    async def run() -> None:
        async with launch_workers(prefill=0) as cluster:
            (d,) = cluster.decode
            call = getattr(worker_pb2_grpc.WorkerServiceStub(d.channel), rpc)(nothing(), metadata=metadata)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED

    asyncio.run(run())


def test_a_router_that_leaves_leaves_nothing_behind(launch_workers: Launch) -> None:
    async def run() -> None:
        async with launch_workers(step_s=0.01) as cluster:
            (p,), (d,) = cluster.prefill, cluster.decode
            for i in range(8):
                cluster.split(SequenceKey(f"r{i}"), p, d, prompt(i, 200), SamplingParams(max_tokens=200))
            await d.until(lambda: len(d.tokens) >= 2)
            for wire in (p, d):
                await wire.channel.close()
            for wire in (p, d):
                await wire.engine_is_empty()

    asyncio.run(run())


def test_a_prefill_whose_decode_worker_never_reserves_ends_at_its_deadline(launch_workers: Launch) -> None:
    async def run() -> None:
        async with launch_workers() as cluster:
            (p,), (d,) = cluster.prefill, cluster.decode
            key = SequenceKey("alone")
            p.submit(key, pb.SEQUENCE_MODE_PREFILL, prompt(5), GREEDY, d, deadline_s=0.5)
            await p.until(lambda: key in p.failed)
            assert p.failed[key].status == "DEADLINE_EXCEEDED"
            await cluster.settled()

    asyncio.run(run())


def test_a_prefill_worker_that_dies_behind_its_offer_frees_the_reservation_at_once(launch_workers: Launch) -> None:
    """The pair ends with it, and the lease of half a minute is not waited for; the router is told."""

    async def run() -> None:
        async with launch_workers(transport="gloo") as cluster:
            (p,), (d,) = cluster.prefill, cluster.decode
            key, dying = SequenceKey("offered"), asyncio.Event()
            d.submit(key, pb.SEQUENCE_MODE_DECODE, prompt(8), GREEDY, p)
            await d.until(lambda: key in d.progress)
            assert d.progress[key][0].progress == pb.HANDOFF_PROGRESS_RESERVED
            (attempt,) = d.keys

            async def offer() -> AsyncIterator[pb.SourceMessage]:
                me, them = p.hello, d.hello
                yield pb.SourceMessage(hello=pb.PairHello(
                    source_boot_id=me.boot_id, target_boot_id=them.boot_id, source_worker_id=me.worker_id,
                    protocol_version=me.protocol_version, layout_fingerprint=me.layout_fingerprint,
                    block_bytes=me.block_bytes, transports=me.transports, host_id="another host",
                ))  # fmt: skip
                yield pb.SourceMessage(
                    offer=pb.Offer(
                        key=pb.SequenceKey(request_id=key.request_id, attempt=attempt), transfer_id=1, num_blocks=25
                    )
                )
                await dying.wait()

            async with grpc.aio.insecure_channel(d.ready.address) as channel:
                stub = worker_pb2_grpc.WorkerServiceStub(channel)
                call = stub.Handoff(offer(), metadata=(("authorization", "Bearer s3cret"),))
                said = [(await call.read()).WhichOneof("message")]
                while said[-1] != "reserved":
                    said.append((await call.read()).WhichOneof("message"))
            dying.set()
            await d.until(lambda: key in d.failed, 5.0)
            assert d.failed[key].reason == "PeerLost"
            await d.engine_is_empty(5.0)

    asyncio.run(run())


def test_a_reservation_for_a_prefill_worker_that_never_offers_goes_with_the_routers_word(
    launch_workers: Launch,
) -> None:
    """The router ends a request whose prefill worker died: the decode worker needs no notice of its own."""

    async def run() -> None:
        async with launch_workers() as cluster:
            (p,), (d,) = cluster.prefill, cluster.decode
            key = SequenceKey("never offered")
            d.submit(key, pb.SEQUENCE_MODE_DECODE, prompt(9), GREEDY, p)
            await d.until(lambda: key in d.progress)
            d.abort(key)
            await d.engine_is_empty(5.0)

    asyncio.run(run())


def test_a_role_takes_only_its_own_work(launch_workers: Launch) -> None:
    async def run() -> None:
        async with launch_workers() as cluster:
            (p,), (d,) = cluster.prefill, cluster.decode
            key = SequenceKey("wrong")
            p.submit(key, pb.SEQUENCE_MODE_FULL, prompt(6), GREEDY)
            d.submit(key, pb.SEQUENCE_MODE_PREFILL, prompt(6), GREEDY, p)
            for wire in (p, d):
                await wire.until(lambda wire=wire: key in wire.failed)  # type: ignore[misc]
                assert wire.failed[key].status == "FAILED_PRECONDITION"
            p.outgoing.put_nowait(pb.RouterMessage(abort=pb.AbortSequence(key=key_to_proto(SequenceKey("unknown")))))
            await cluster.settled()

    asyncio.run(run())
