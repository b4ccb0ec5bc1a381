"""Two real workers with mock engines: the whole handoff over real streams and transports."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from kv_transfer.transports import SharedMemoryTransport
from pdserve.errors import IncompatiblePeer
from pdserve.ids import SequenceKey
from pdserve.sampling import SamplingParams
from pdserve.v1 import inference_pb2
from pdserve.v1 import worker_pb2 as pb

Launch = Callable[..., AbstractAsyncContextManager[Any]]
TRANSPORTS = ["shm", "gloo"]


def prompt(rng: random.Random, n: int) -> list[int]:
    return [rng.randrange(2048) for _ in range(n)]


def tokens(wires: list[Any], key: SequenceKey) -> list[int]:
    """Every token of a sequence, from whoever sampled it; none is missing."""
    merged: dict[int, int] = {}
    for wire in wires:
        for index, token in wire.tokens.get(key, {}).items():
            assert index not in merged
            merged[index] = token
    assert sorted(merged) == list(range(len(merged)))
    return [merged[i] for i in range(len(merged))]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_split_sequence_gives_the_tokens_of_a_colocated_one(launch_workers: Launch, transport: str) -> None:
    async def run() -> None:
        rng = random.Random(1)
        async with launch_workers(transport=transport) as cluster:
            (p,), (d,) = cluster.prefill, cluster.decode
            prompts = [prompt(rng, n) for n in (1, 2, 3, 4, 5, 8, 63, 64, 65, 200, 400)]
            for i, ids in enumerate(prompts):
                cluster.split(SequenceKey(f"s{i}"), p, d, ids, SamplingParams(max_tokens=20))
            await d.until(lambda: len(d.finished) == len(prompts))
            for i, ids in enumerate(prompts):
                d.submit(SequenceKey(f"f{i}"), pb.SEQUENCE_MODE_FULL, ids, SamplingParams(max_tokens=20))
            await d.until(lambda: len(d.finished) == 2 * len(prompts))
            for i in range(len(prompts)):
                split, full = SequenceKey(f"s{i}"), SequenceKey(f"f{i}")
                assert list(p.tokens[split]) == [0], "token 1 comes from the prefill worker, nothing else"
                assert tokens([p, d], split) == tokens([d], full)
                assert len(tokens([d], full)) == 20
                assert d.finished[split] == inference_pb2.FINISH_REASON_LENGTH
                reserved, committed = d.progress[split]
                assert reserved.progress == pb.HANDOFF_PROGRESS_RESERVED
                assert committed.progress == pb.HANDOFF_PROGRESS_COMMITTED
            assert not p.failed and not d.failed
            await cluster.settled()

    asyncio.run(run())


def test_a_sequence_that_ends_at_token_one_leaves_nothing_on_either_side(launch_workers: Launch) -> None:
    async def run() -> None:
        async with launch_workers() as cluster:
            (p,), (d,) = cluster.prefill, cluster.decode
            key = SequenceKey("one")
            cluster.split(key, p, d, prompt(random.Random(2), 150), SamplingParams(max_tokens=1))
            await p.until(lambda: key in p.finished)
            d.abort(key)
            assert list(p.tokens[key]) == [0]
            await cluster.settled()

    asyncio.run(run())


def test_blocks_that_the_decode_worker_has_are_not_sent_again(launch_workers: Launch) -> None:
    async def run() -> None:
        async with launch_workers() as cluster:
            (p,), (d,) = cluster.prefill, cluster.decode
            ids = prompt(random.Random(3), 103)
            for name in ("first", "second"):
                key = SequenceKey(name)
                cluster.split(key, p, d, ids, SamplingParams(max_tokens=5))
                await d.until(lambda key=key: key in d.finished)  # type: ignore[misc]
            first, second = (d.progress[SequenceKey(n)][1] for n in ("first", "second"))
            assert (first.blocks_skipped, second.blocks_skipped) == (0, 25)
            assert second.bytes_moved == d.hello.block_bytes and first.bytes_moved == 26 * d.hello.block_bytes
            assert tokens([p, d], SequenceKey("first")) == tokens([p, d], SequenceKey("second"))
            await cluster.settled()

    asyncio.run(run())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_aborts_at_random_moments_free_every_block_and_disturb_nobody(launch_workers: Launch, transport: str) -> None:
    async def run() -> None:
        rng = random.Random(4)
        async with launch_workers(transport=transport, step_s=0.002) as cluster:
            (p,), (d,) = cluster.prefill, cluster.decode
            keys = [SequenceKey(f"r{i}") for i in range(60)]
            prompts = {key: prompt(rng, rng.randint(1, 200)) for key in keys}
            aborted = set(rng.sample(keys, 30))
            for key in keys:
                cluster.split(key, p, d, prompts[key], SamplingParams(max_tokens=rng.randint(2, 12)))
                await asyncio.sleep(rng.random() * 0.004)
                for other in [k for k in aborted if k in keys[: keys.index(key) + 1]]:
                    if rng.random() < 0.1:
                        both = [p, d]
                        rng.shuffle(both)
                        for wire in both:
                            wire.abort(other)
            for key in aborted:
                p.abort(key)
                d.abort(key)
            await d.until(lambda: all(k in d.finished for k in keys if k not in aborted))
            assert not {k: f for k, f in (p.failed | d.failed).items() if k not in aborted}
            await cluster.settled()
            done = [k for k in keys if k not in aborted]
            for key in done[:8]:
                again = SequenceKey(key.request_id, 2)
                n = len(tokens([p, d], key))
                d.submit(again, pb.SEQUENCE_MODE_FULL, prompts[key], SamplingParams(max_tokens=n))
                await d.until(lambda again=again: again in d.finished)  # type: ignore[misc]
                assert tokens([d], again) == tokens([p, d], key)

    asyncio.run(run())


def test_an_end_at_token_one_is_told_by_the_prefill_worker_alone(launch_workers: Launch) -> None:
    """The decode worker's reservation goes quietly: its word may not overtake the finished request's."""

    async def run() -> None:
        async with launch_workers() as cluster:
            (p,), (d,) = cluster.prefill, cluster.decode
            for i in range(20):
                cluster.split(SequenceKey(f"r{i}"), p, d, prompt(random.Random(i), 100), SamplingParams(max_tokens=1))
            await p.until(lambda: len(p.finished) == 20)
            for i in range(20):
                d.abort(SequenceKey(f"r{i}"))
            await cluster.settled()
            assert not d.failed and not p.failed

    asyncio.run(run())


def test_gloo_pairs_listen_where_their_worker_does(launch_workers: Launch) -> None:
    """Another address than 127.0.0.1, as on a cluster of several machines."""

    async def run() -> None:
        async with launch_workers(transport="gloo", host="127.0.0.2") as cluster:
            (p,), (d,) = cluster.prefill, cluster.decode
            assert p.ready.address.startswith("127.0.0.2:")
            key = SequenceKey("far")
            cluster.split(key, p, d, prompt(random.Random(8), 90), SamplingParams(max_tokens=4))
            await d.until(lambda: key in d.finished)
            assert len(tokens([p, d], key)) == 4
            await cluster.settled()

    asyncio.run(run())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_pools_that_are_far_too_small_make_everybody_wait_and_nobody_wrong(
    launch_workers: Launch, transport: str
) -> None:
    """Prompts queue on both sides, running sequences are preempted and computed again on the decode worker."""

    async def run() -> None:
        rng = random.Random(9)
        small = {"max_model_len": 256, "kv_bytes": 70 * (4 * 64 + 8), "transport": transport}
        async with launch_workers(**small) as cluster:
            (p,), (d,) = cluster.prefill, cluster.decode
            prompts = {SequenceKey(f"r{i}"): prompt(rng, rng.randint(1, 120)) for i in range(24)}
            for key, ids in prompts.items():
                cluster.split(key, p, d, ids, SamplingParams(max_tokens=100))
            await d.until(lambda: len(d.finished) == len(prompts) or p.failed or d.failed, 60.0)
            assert not p.failed and not d.failed
            assert d.built.core.scheduler.num_preemptions > 0, "the pool was not small enough to show anything"
            split = {key: tokens([p, d], key) for key in prompts}
            await cluster.settled()
        async with launch_workers(prefill=0) as one:
            (engine,) = one.decode
            for key, ids in prompts.items():
                engine.submit(key, pb.SEQUENCE_MODE_FULL, ids, SamplingParams(max_tokens=100))
            await engine.until(lambda: len(engine.finished) == len(prompts), 60.0)
            assert {key: tokens([engine], key) for key in prompts} == split

    asyncio.run(run())


@pytest.mark.parametrize("end", ["open_source", "open_target"])
def test_a_transport_that_cannot_be_opened_gives_way_to_the_next(
    launch_workers: Launch, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """The request that met it fails as one that may be tried again; the next pair of the two takes another."""

    async def refuse(*_: object) -> None:
        raise IncompatiblePeer("this memory cannot be mapped")

    monkeypatch.setattr(SharedMemoryTransport, end, refuse)

    async def run() -> None:
        async with launch_workers(transport="auto") as cluster:
            (p,), (d,) = cluster.prefill, cluster.decode
            ids, unlucky, lucky = prompt(random.Random(3), 50), SequenceKey("unlucky"), SequenceKey("lucky")
            cluster.split(unlucky, p, d, ids, SamplingParams(max_tokens=5))
            teller, other = (d, p) if end == "open_source" else (p, d)
            await teller.until(lambda: unlucky in teller.failed)
            assert teller.failed[unlucky].status == "UNAVAILABLE"
            other.abort(unlucky)  # as the router does
            cluster.split(lucky, p, d, ids, SamplingParams(max_tokens=5))
            await d.until(lambda: lucky in d.finished)
            assert len(tokens([p, d], lucky)) == 5
            await cluster.settled()

    asyncio.run(run())
