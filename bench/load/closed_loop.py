"""A closed loop: so many requests open at once, the next one when one ends. Shows capacity, not what users wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.load.grpc_stream import GrpcPool
from bench.load.http_stream import HttpPool
from bench.load.result import Answer, BadAnswer


@dataclass(frozen=True, slots=True)
class Streamed:
    """One request that was answered to its end."""

    sent_s: float  # perf_counter
    answer: Answer

    @property
    def ttft_s(self) -> float:
        return self.answer.first_s - self.sent_s


async def closed_loop(
    pool: HttpPool | GrpcPool, requests: Sequence[bytes], concurrency: int, limit_s: float
) -> list[Streamed | str]:
    """Every request's answer, or what went wrong; limit_s for each. The pool is closed in the end."""
    left = iter(enumerate(requests))
    answers: list[Streamed | str] = ["never sent"] * len(requests)

    async def one_slot() -> None:
        for index, request in left:
            try:
                async with asyncio.timeout(limit_s):
                    sent_s = time.perf_counter()
                    answers[index] = Streamed(sent_s, await pool.ask(request))
            except (BadAnswer, OSError) as error:  # TimeoutError is an OSError
                answers[index] = f"{type(error).__name__}: {error}"

    try:
        await asyncio.gather(*(one_slot() for _ in range(concurrency)))
    finally:
        await pool.close()
    return answers
