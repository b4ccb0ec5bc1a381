"""Phases add up to the first token and to the end, for every request of a load, whatever became of it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from pdserve.errors import QueueFull
from router.record import Outcome, RequestRecord

Observe = Callable[..., AbstractAsyncContextManager[Any]]


def check(record: RequestRecord) -> None:
    """To the microsecond, though 1 ms is promised."""
    timing = record.timing
    phases = (timing.queue_s, timing.prefill_s, timing.transfer_s, timing.decode_wait_s, timing.decode_s)
    assert min(phases) >= -1e-9, record
    assert sum(phases) == pytest.approx(record.ended_s, abs=1e-6), record
    if record.completion_tokens:
        assert timing.queue_s + timing.prefill_s == pytest.approx(timing.ttft_s, abs=1e-6), record
    if record.outcome is Outcome.FINISHED and record.completion_tokens > 1:
        last_s = timing.ttft_s + timing.tpot_s * (record.completion_tokens - 1)
        assert last_s == pytest.approx(record.ended_s, abs=1e-6), record


async def one_client(cluster: Any, rng: random.Random) -> None:
    """A request that ends by itself, at once, by the client, by the deadline, or with a cached prompt."""
    kind = rng.choice(["whole", "whole", "one_token", "cancel", "abort", "deadline", "cached", "short"])
    prompt_tokens = {"short": 8}.get(kind, rng.randrange(20, 400))
    changes: dict[str, Any] = {"deadline_s": rng.uniform(0.005, 0.1)} if kind == "deadline" else {}
    if kind == "cached":
        changes["prompt"], prompt_tokens = 1, 200
    max_tokens = 1 if kind == "one_token" else rng.randrange(2, 40)
    try:
        submitted = cluster.submit(prompt_tokens, max_tokens, **changes)
    except QueueFull:
        assert kind == "deadline"  # which a busy machine is seen not to make before it begins
        return
    if kind in ("cancel", "abort"):
        await asyncio.sleep(rng.uniform(0.0, 0.08))
        if kind == "cancel":
            submitted[1].cancel()
        else:
            cluster.core.abort(submitted[0], "default")
    check(await cluster.end_of(submitted))


@pytest.mark.parametrize("prefill", [2, 0], ids=["split", "colocated"])
def test_under_load(observe: Observe, prefill: int) -> None:
    """120 requests, 24 at a time, split or colocated; short prompts stay on the decode worker; at last one dies."""

    async def main() -> None:
        rng = random.Random(7)
        async with observe(prefill, 2, local_prefill_max_tokens=16) as cluster:
            await cluster.run(200, 4, prompt=1)
            gate = asyncio.Semaphore(24)

            async def client() -> None:
                async with gate:
                    await one_client(cluster, rng)

            async with asyncio.TaskGroup() as clients:
                for _ in range(120):
                    clients.create_task(client())
            running = [cluster.submit(100, 200) for _ in range(4)]
            await asyncio.sleep(0.1)
            cluster.core.fleet.get("decode-0").session.fail("killed by the test")
            for one in running:
                check(await cluster.end_of(one))
        outcomes = Counter(record.outcome for record in cluster.records.values())
        assert len(cluster.records) == 125
        late = outcomes[Outcome.DEADLINE] + outcomes[Outcome.REJECTED]
        assert min(outcomes[Outcome.FINISHED], outcomes[Outcome.CANCELLED], late) >= 5, outcomes
        assert outcomes[Outcome.FAILED] >= 1, outcomes
        assert any(record.cached_tokens for record in cluster.records.values())

    asyncio.run(main())
