"""Prompts that begin alike meet on one prefill worker, within a tenant."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from scheduling.prefix_directory import chunk_keys

Observe = Callable[..., AbstractAsyncContextManager[Any]]

PREFIX = 384  # three chunks, 96 blocks


def test_a_second_turn_goes_where_the_first_was_computed(observe: Observe) -> None:
    """Also after a while in which other prompts went everywhere; another tenant's equal prompt finds nothing."""

    async def main() -> None:
        async with observe(prefill=3, decode=1) as cluster:
            for _ in range(24):  # every worker takes some steps before the first status
                await cluster.run(64, 2)
            await cluster.measured()
            first = {prompt: await cluster.run(PREFIX + 10, 4, prompt=prompt) for prompt in (501, 502, 503)}
            for turn in (20, 30):
                for prompt, before in first.items():
                    record = await cluster.run(PREFIX + turn, 4, prompt=prompt)
                    assert record.timing.prefill_worker == before.timing.prefill_worker
                    assert PREFIX <= record.cached_tokens < PREFIX + turn
                    assert 0.0 < (record.predicted.prefill_s or 0.0) < 0.5 * (before.predicted.prefill_s or 0.0)
            foreign = await cluster.run(PREFIX + 40, 4, prompt=501, tenant="another")
            assert foreign.cached_tokens == 0
            cluster.core.fleet.check()

    asyncio.run(main())


def test_without_prefix_caching_nothing_is_noted(observe: Observe) -> None:
    """As the workers say it of themselves; a decode worker alone that keeps prefixes is enough to note them there."""

    async def main() -> None:
        async with observe(decode_changes={"enable_prefix_caching": False}) as cluster:
            assert cluster.core.fleet.prefixes
            ids = tuple(range(PREFIX))
            await cluster.run(0, 2, prompt_token_ids=ids)
            assert cluster.core.fleet.prefixes.expected(chunk_keys(ids, "default"), PREFIX + 1) == {"prefill-0": PREFIX}
        async with observe(prefill=0, decode_changes={"enable_prefix_caching": False}) as cluster:
            await cluster.run(PREFIX, 2)
            assert not cluster.core.fleet.prefixes

    asyncio.run(main())
