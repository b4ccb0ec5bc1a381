"""The next turn of a chat: what of it a decode worker has, and who computes the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pdserve.errors import ServingError
from pdserve.sampling import FinishReason, SamplingParams
from pdserve.v1 import worker_pb2
from router.core.config import CoreConfig
from scheduling.prefix_directory import CHUNK_TOKENS, chunk_keys
from scheduling.routing import RoutingConfig

ASKED = tuple(range(1000, 1300))
ANSWER = tuple(range(90))
NEXT = (*ASKED, *ANSWER, *range(2000, 2060))  # 450 tokens; 389 of them are cached, in whole chunks 384
LACKING = len(NEXT) - 3 * CHUNK_TOKENS
SAMPLING = SamplingParams(max_tokens=100)


def run(harness: Any, chat: Callable[[Any], Coroutine[Any, Any, None]], limit: int = LACKING) -> None:
    """Against a prefill and two decode workers that keep prefixes."""

    async def main() -> None:
        names = (("prefill-0", "prefill"), ("decode-0", "decode"), ("decode-1", "decode"))
        workers = [harness.FakeWorker(*name, prefix_caching=True) for name in names]
        config = CoreConfig(tick_s=0.05, routing=RoutingConfig(local_prefill_max_tokens=limit))
        async with harness.cluster(workers, config) as cluster:
            await chat(cluster)

    asyncio.run(main())


async def first_told(workers: list[Any], request_id: str) -> Any:
    """Whichever of them is told of the request first, and its key."""
    waiting = {asyncio.create_task(worker.told(request_id)): worker for worker in workers}
    done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    task = done.pop()
    return waiting[task], task.result()


async def asked(cluster: Any, request_id: str = "first", prompt: tuple[int, ...] = ASKED) -> tuple[Any, Any, Any]:
    """A request that travels: its stream, its decode worker and its key."""
    stream = cluster.submit(request_id, prompt_token_ids=prompt, sampling=SAMPLING)
    prefill, *decodes = cluster.workers
    key = await prefill.told(request_id)
    decode, _ = await first_told(decodes, request_id)
    return stream, decode, key


async def answered(harness: Any, cluster: Any) -> Any:
    """A first turn to its end; who has it now."""
    stream, decode, key = await asked(cluster)
    cluster.prefill.tokens(key, 0, ANSWER[0], queue_s=0.0)
    decode.handoff(key, "RESERVED")
    decode.handoff(key, "COMMITTED")
    for index, token in enumerate(ANSWER[1:-1], 1):
        decode.tokens(key, index, token)
    decode.tokens(key, len(ANSWER) - 1, ANSWER[-1], finish=FinishReason.LENGTH)
    tokens, _ = await harness.read_all(stream)
    assert tuple(tokens) == ANSWER
    return decode


def expected(cluster: Any, prompt: tuple[int, ...] = NEXT) -> dict[str, int]:
    return dict(cluster.core.fleet.prefixes.expected(chunk_keys(prompt, ""), len(prompt)))


def test_the_next_turn_is_computed_where_the_last_answer_is(harness: Any) -> None:
    """Only there: of the prompt alone the others lack too much, and so would this one without the answer."""

    async def chat(cluster: Any) -> None:
        decode = await answered(harness, cluster)
        assert expected(cluster) == {"prefill-0": 2 * CHUNK_TOKENS, decode.worker_id: 3 * CHUNK_TOKENS}
        for n in range(3):
            stream = cluster.submit(f"next-{n}", prompt_token_ids=NEXT)
            key = await decode.told(f"next-{n}")
            assert decode.submits[key].mode == worker_pb2.SEQUENCE_MODE_FULL
            decode.tokens(key, 0, 5, finish=FinishReason.STOP, queue_s=0.0, cached=389)
            _, end = await harness.read_all(stream)
            assert end.timing.prefill_worker == end.timing.decode_worker == decode.worker_id
            assert end.cached_tokens == 389
        assert not any(key.request_id.startswith("next") for key in cluster.prefill.submits)
        assert "pdserve_prompts_computed_on_decode_total 3.0\n" in cluster.metrics()

    run(harness, chat)


@pytest.mark.parametrize("limit", [0, LACKING - 1])
def test_it_travels_where_the_decode_worker_lacks_more_than_is_allowed(harness: Any, limit: int) -> None:
    async def chat(cluster: Any) -> None:
        await answered(harness, cluster)
        await asked(cluster, "next", NEXT)

    run(harness, chat, limit)


def test_a_chunk_that_ends_with_the_last_token_is_not_there(harness: Any) -> None:
    """Nobody computed that token's KV."""

    async def chat(cluster: Any) -> None:
        for more, chunks in ((0, 2), (1, 3)):
            prompt = ASKED[: 3 * CHUNK_TOKENS - len(ANSWER) + more]
            assert len(prompt) // CHUNK_TOKENS == 2
            stream, decode, key = await asked(cluster, f"r{more}", prompt)
            cluster.prefill.tokens(key, 0, ANSWER[0], queue_s=0.0)
            decode.handoff(key, "COMMITTED")
            decode.tokens(key, 1, *ANSWER[1:], finish=FinishReason.LENGTH)
            await harness.read_all(stream)
            assert expected(cluster, (*prompt, *ANSWER, 7))[decode.worker_id] == chunks * CHUNK_TOKENS

    run(harness, chat, 0)


def test_a_decode_worker_has_a_prompt_once_it_says_so(harness: Any) -> None:
    """While it is on its way, what begins alike must not be computed there as if it had come."""

    async def chat(cluster: Any) -> None:
        stream, decode, key = await asked(cluster)
        cluster.prefill.tokens(key, 0, ANSWER[0], queue_s=0.0)
        await harness.read_tokens(stream, 1)
        assert expected(cluster, ASKED) == {"prefill-0": 2 * CHUNK_TOKENS}
        await asked(cluster, "alike", (*ASKED[:256], *range(40)))
        decode.handoff(key, "COMMITTED")
        decode.tokens(key, 1, ANSWER[1])
        await harness.read_tokens(stream, 1)
        assert expected(cluster, ASKED) == {"prefill-0": 2 * CHUNK_TOKENS, decode.worker_id: 2 * CHUNK_TOKENS}

    run(harness, chat)


def test_what_ends_early_is_noted_as_far_as_it_came(harness: Any) -> None:
    """A client that left, or said stop, leaves what was computed; at token 1, or of a failure, nothing is known."""

    async def chat(cluster: Any) -> None:
        cases = {"cancel": 3, "finish": 3, "abort": 3, "at token 1": 0, "failed": 2}
        for n, (ending, chunks) in enumerate(cases.items()):
            prompt = tuple(token + 10_000 * n for token in ASKED)
            stream, decode, key = await asked(cluster, ending, prompt)
            if ending == "at token 1":
                cluster.prefill.tokens(key, 0, 5, finish=FinishReason.LENGTH, queue_s=0.0)
            else:
                cluster.prefill.tokens(key, 0, ANSWER[0], queue_s=0.0)
                decode.handoff(key, "COMMITTED")
                decode.tokens(key, 1, *ANSWER[1:])
                await harness.read_tokens(stream, len(ANSWER))
            if ending == "cancel":
                stream.cancel()
            elif ending == "finish":
                stream.finish(80)
            elif ending == "abort":
                cluster.core.abort("abort", "")
            elif ending == "failed":
                decode.fail(key, "INTERNAL", "broken")
            try:
                [event async for event in stream]
            except ServingError:
                assert ending in ("cancel", "failed")
            has = expected(cluster, (*prompt, *ANSWER, *ANSWER))
            assert has.get(decode.worker_id, 0) == chunks * CHUNK_TOKENS, ending

    run(harness, chat, 0)
