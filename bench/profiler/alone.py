"""Requests that have a cluster to themselves, one after the other, and what their client saw."""

from __future__ import annotations

import asyncio
import re
import statistics
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.load.prompts import Prompts
from bench.load.target import Target
from bench.served.server import Server, ServerFailed
from placement.simulator.cluster import ClusterSpec
from placement.simulator.requests import requests_of
from placement.simulator.simulate import simulate
from placement.workload.workload import Workload

WARM = 4
SHARES = 20  # by which it is told how something varies
REST_S = 0.05  # between two: everything rests, as it does under traffic
LIMIT_S = 60.0
STATUS_S = 1.2  # workers report once a second
_SERIES = re.compile(r"^pdserve_step_seconds_(sum|count)\{([^}]*)\} (\S+)$", re.MULTILINE)
_ROLE = re.compile(r'role="(\w+)"')

Totals = Mapping[str, tuple[float, float]]
"""Role -> (seconds, steps)."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Medians over requests that were alone in the cluster, seconds."""

    ttft_s: float
    second_s: float  # token 1 to token 2
    gap_s: float  # between later tokens, mean of a request
    gaps_s: tuple[float, ...] = ()  # token 1 to 2, 2 to 3, ...
    each_ttft_s: tuple[float, ...] = ()  # of every request
    each_gap_s: tuple[float, ...] = ()


async def one_at_a_time(target: Target, prompt_tokens: int, output_tokens: int, requests: int) -> Seen:
    """`requests` that count behind WARM that do not; no prompt twice. `output_tokens` 1: nothing but TTFT is seen."""
    num = WARM + requests
    workload = Workload.of(np.full(num, prompt_tokens), np.full(num, output_tokens), np.arange(num, dtype=float))
    prompts = Prompts(workload, target.vocab_size, time.time_ns() % (1 << 40), target.wants_text)
    pool = target.pool()
    rows: list[tuple[float, float, float]] = []
    gaps_s: list[list[float]] = []
    try:
        for index in range(num):
            request = target.request(prompts.of(index), output_tokens)
            begin_s = time.perf_counter()
            async with asyncio.timeout(LIMIT_S):
                answer = await pool.ask(request)
            gaps = list(answer.gaps_s)
            rows.append((answer.first_s - begin_s, (gaps or [0.0])[0], statistics.fmean(gaps[1:] or [0.0])))
            gaps_s.append(gaps)
            await asyncio.sleep(REST_S)
    finally:
        await pool.close()
    whole = [gaps for gaps in gaps_s[WARM:] if len(gaps) == output_tokens - 1]  # others had two tokens in one message
    by_index = tuple(statistics.median(column) for column in zip(*whole, strict=True))
    ttft_s, second_s, gap_s = zip(*rows[WARM:], strict=True)
    medians = (statistics.median(column) for column in (ttft_s, second_s, gap_s))
    return Seen(*medians, by_index, ttft_s, gap_s)


def alone_in(twin: ClusterSpec, prompt_tokens: int, output_tokens: int) -> tuple[float, float]:
    """TTFT and TPOT of such a request in the simulator, seconds, at the machine's usual speed."""
    workload = Workload.of(np.array([prompt_tokens]), np.array([output_tokens]), np.array([0.0]))
    told = simulate(replace(twin, jitter=None), requests_of(workload)).requests
    return float(told.ttft_s[0]), float(told.tpot_s[0])


def equally_likely(values: Sequence[float]) -> tuple[float, ...]:
    """The middles of SHARES equal shares of them, in order."""
    return tuple(float(one) for one in np.quantile(values, (np.arange(SHARES) + 0.5) / SHARES))


def step_totals(http_port: int) -> Totals:
    """What a cluster's steps have taken by now; workers tell once in STATUS_S."""
    with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/metrics", timeout=10.0) as answer:
        return parse_totals(answer.read().decode())


def parse_totals(text: str) -> Totals:
    """From a Prometheus page."""
    found: dict[str, list[float]] = {}
    for kind, labels, value in _SERIES.findall(text):
        role = _ROLE.search(labels)
        row = found.setdefault(role[1] if role else "", [0.0, 0.0])
        row[kind == "count"] += float(value)
    return {role: (seconds, steps) for role, (seconds, steps) in found.items()}


def since(before: Totals, after: Totals, role: str) -> tuple[float, float]:
    """(seconds, steps) of a role between two totals."""
    (then_s, then), (now_s, now) = before.get(role, (0.0, 0.0)), after.get(role, (0.0, 0.0))
    return now_s - then_s, now - then


def totals_of(server: Server) -> Totals:
    """Of everything up to now."""
    time.sleep(STATUS_S)
    return step_totals(server.port)


def mean_step_s(before: Totals, after: Totals, role: str) -> float:
    """Of a role's steps between two totals. Errors: ServerFailed where there were none."""
    seconds, steps = since(before, after, role)
    if steps < 1:
        raise ServerFailed(f"{role} workers told of no step within {STATUS_S:g} s; is the machine overloaded?")
    return seconds / steps
