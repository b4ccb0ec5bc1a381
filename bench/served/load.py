"""A closed loop of requests against one server, and what it showed."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.load.closed_loop import Streamed, closed_loop
from bench.load.http_request import completion_request
from bench.load.http_stream import HttpPool
from bench.load.statistics import Spread
from bench.served.process_tree import busy_s
from bench.served.server import Server
from bench.served.systems import MODEL_NAME

FIRST_TOKEN_ID, END_TOKEN_ID = 4, 4096  # ids with text in every made tokenizer of that size
REQUEST_LIMIT_S = 180.0
WARM_REQUESTS, WARM_TOKENS = 8, 8


@dataclass(frozen=True, slots=True)
class Load:
    """How a server is asked."""

    input_tokens: int
    output_tokens: int
    concurrency: int
    num_requests: int

    def __str__(self) -> str:
        return f"{self.input_tokens}x{self.output_tokens} conc {self.concurrency}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One load on one server."""

    elapsed_s: float
    num_ok: int
    errors: Counter[str]  # message -> requests that ended so
    output_tokens: int
    cached_tokens: int  # prompt tokens found in a prefix cache; none are expected
    ttft_s: Spread
    tpot_s: Spread
    cores: dict[str, float]  # process -> cores it used
    client_cores: float
    other_cores: float  # all else on the machine

    @property
    def requests_per_s(self) -> float:
        return self.num_ok / self.elapsed_s

    @property
    def tokens_per_s(self) -> float:
        return self.output_tokens / self.elapsed_s


def prompts_of(load: Load, num_prompts: int, seed: str) -> list[list[int]]:
    """The same for the same seed; no two begin alike."""
    dice = random.Random(f"{seed} {load}")
    return [
        [dice.randrange(FIRST_TOKEN_ID, END_TOKEN_ID) for _ in range(load.input_tokens)] for _ in range(num_prompts)
    ]


def run_load(server: Server, load: Load, seed: str) -> Outcome:
    """Warm the server at this load with a few short requests, then measure."""
    warm = prompts_of(load, min(load.concurrency, WARM_REQUESTS), f"warm {seed}")
    _ask(server, [completion_request(MODEL_NAME, p, WARM_TOKENS) for p in warm], len(warm))
    requests = [
        completion_request(MODEL_NAME, p, load.output_tokens) for p in prompts_of(load, load.num_requests, seed)
    ]
    before, busy_before_s, own_before_s, begin_s = server.processor_s(), busy_s(), time.process_time(), time.monotonic()
    answers = _ask(server, requests, load.concurrency)
    elapsed_s, own_s, all_s = time.monotonic() - begin_s, time.process_time() - own_before_s, busy_s() - busy_before_s
    spent = {name: total - before.get(name, 0.0) for name, total in server.processor_s().items()}
    ok = [one for one in answers if isinstance(one, Streamed) and one.answer.num_tokens == load.output_tokens]
    return Outcome(
        elapsed_s=elapsed_s,
        num_ok=len(ok),
        errors=Counter(error_of(answer) for answer in answers if answer not in ok),
        output_tokens=sum(one.answer.num_tokens for one in ok),
        cached_tokens=sum(one.answer.cached_tokens for one in ok),
        ttft_s=Spread.of([one.ttft_s for one in ok]),
        tpot_s=Spread.of([one.answer.tpot_s for one in ok]),
        cores={name: one_s / elapsed_s for name, one_s in spent.items()},
        client_cores=own_s / elapsed_s,
        other_cores=max(0.0, all_s - own_s - sum(spent.values())) / elapsed_s,
    )


def error_of(answer: Streamed | str) -> str:
    return answer if isinstance(answer, str) else f"{answer.answer.num_tokens} tokens came"


def _ask(server: Server, requests: Sequence[bytes], concurrency: int) -> list[Streamed | str]:
    return asyncio.run(closed_loop(HttpPool("127.0.0.1", server.port), requests, concurrency, REQUEST_LIMIT_S))


def greedy_tokens(server: Server, prompts: Sequence[list[int]], num_tokens: int) -> list[tuple[int, ...]]:
    """What the server says to each prompt, one after the other; an empty answer where it failed."""
    requests = [completion_request(MODEL_NAME, prompt, num_tokens, want_token_ids=True) for prompt in prompts]
    return [one.answer.token_ids if isinstance(one, Streamed) else () for one in _ask(server, requests, 1)]
