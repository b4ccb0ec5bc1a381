"""What a worker that serves adds: the model behind the real doors, one request at a time, then several workers at once.

Back to back on an engine alone, steps are as short as they get. A worker's have rested before, its interpreter has
messages to write beside them, and on a CPU its caches and cores are others' too. Workers count what their steps take
(`pdserve_step_seconds`); what that is beyond the profile's own curve is constant per step, so far as we have seen.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.load.prompts import Prompts
from bench.load.target import Target
from bench.profiler.alone import STATUS_S, Seen, Totals, one_at_a_time, since, step_totals
from bench.profiler.cluster import running
from bench.profiler.delays import BLOCK_SIZE, REQUESTS, Known, Measured, Trip, delays_of, wake_up_s
from bench.served.server import Server, ServerFailed
from placement.latency.served import ServedSteps
from placement.simulator.cluster import LinkSpec, Slowdown, StepTimes
from placement.workload.workload import Workload

OUTPUT_TOKENS = 16
TOGETHER_S, TOGETHER_ROUNDS = 2.0, 3
Busy = tuple[int, int]
"""How many workers compute prompts, and how many decodes."""
CLUSTERS = {"split": ["--prefill", "1", "--decode", "1"], "pair": ["--prefill", "0", "--decode", "2"]}
TOGETHER: Mapping[str, tuple[Busy, ...]] = {"split": ((1, 0), (0, 1), (1, 1)), "pair": ((2, 0), (0, 2))}
ROLES = {"split": ("prefill", "decode"), "pair": ("decode", "decode")}  # of who computes prompts, and decodes
LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Served:
    """Of one model."""

    steps: ServedSteps
    delays: Measured


@dataclass(frozen=True, slots=True)
class Together:
    """Of workers that compute prompts and of those that decode; nan where there are none."""

    step_s: tuple[float, float]  # mean
    share: tuple[float, float]  # of the time that a busy worker computed


@dataclass(frozen=True, slots=True)
class Subject:
    """What is served, and what is known of it."""

    flags: Sequence[str]  # of `serve`, MODEL among them
    times: StepTimes  # of an engine alone
    link: LinkSpec
    kv_bytes_per_token: int
    chunk_tokens: int  # of a step
    prompt_tokens: int  # of requests; one chunk
    long_tokens: int  # of others, for what grows with the context
    most_output_tokens: int
    at_once: float  # workers that have cores of their own: the machine's cores / a worker's threads


def measure_served(subject: Subject, log_dir: Path, requests: int = REQUESTS) -> Served:
    """Starts a colocated cluster, then those of CLUSTERS together. Errors: ServerFailed, BadAnswer, TimeoutError."""
    with running({"colocated": [*subject.flags, "--prefill", "0", "--decode", "1"]}, log_dir) as started:
        colocated = _colocated_alone(*started["colocated"], subject.prompt_tokens, requests)
    clusters = {name: [*subject.flags, *workers] for name, workers in CLUSTERS.items()}
    with running(clusters, log_dir) as started:
        for server, _ in started.values():
            server.park()
        server, target = started["split"]
        server.resume()
        split = _split_alone(server, target, subject.prompt_tokens, requests)
        long = _split_alone(server, target, subject.long_tokens, requests // 2)
        server.park()
        server, target = started["pair"]
        server.resume()
        asyncio.run(_all_ask(target, subject.long_tokens, [1, OUTPUT_TOKENS]))  # warms it up, as the other is by now
        server.park()
        rounds = [_round(started, subject) for _ in range(TOGETHER_ROUNDS)]
    trip = Trip(subject.prompt_tokens, subject.kv_bytes_per_token * BLOCK_SIZE, subject.link)
    served = {subject.prompt_tokens: split[1], subject.long_tokens: long[1]}
    extras = [_extra(known, expected(subject, tokens)) for tokens, known in served.items()]
    steps = ServedSteps(
        *(max(0.0, statistics.fmean(column)) for column in zip(*extras, strict=True)),
        slowdown_of(rounds, subject.at_once),
    )
    return Served(steps, delays_of(colocated, split, wake_up_s(), trip))


def expected(subject: Subject, prompt_tokens: int) -> Known:
    """A mean step of the prompt and a mean decode, on an engine alone."""
    times, starts = subject.times, range(0, prompt_tokens, subject.chunk_tokens)
    chunks = [(start, min(subject.chunk_tokens, prompt_tokens - start)) for start in starts]
    prefills = [times.batch_s(n, n * (2 * start + n + 1) / 2, 0, start + n) for start, n in chunks]
    decodes = [times.batch_s(0, 0.0, 1, prompt_tokens + i) for i in range(1, OUTPUT_TOKENS)]
    return Known(statistics.fmean(prefills), statistics.fmean(decodes))


def _extra(served: Known, alone: Known) -> tuple[float, float]:
    return served.prefill_s - alone.prefill_s, served.decode_s - alone.decode_s


def slowdown_of(rounds: Sequence[Mapping[Busy, Together]], at_once: float) -> Slowdown:
    """What each costs the other while both compute, beyond the wait for a core; never less than nothing."""

    def cost(role: int, alone: Busy, beside: Busy, other: int) -> float:
        found = []
        for one in rounds:
            longer = one[beside].step_s[role] / one[alone].step_s[role] / max(1.0, sum(beside) / at_once) - 1.0
            found.append(longer / one[beside].share[other])
        return max(0.0, statistics.median(found))

    prompts, decodes = 0, 1
    return Slowdown(
        at_once,
        cost(prompts, (1, 0), (2, 0), prompts),
        cost(prompts, (1, 0), (1, 1), decodes),
        cost(decodes, (0, 1), (1, 1), prompts),
        cost(decodes, (0, 1), (0, 2), decodes),
    )


def _split_alone(server: Server, target: Target, prompt_tokens: int, requests: int) -> tuple[Seen, Known]:
    """Each role counts steps of its own kind."""
    before = _totals(server)
    seen = asyncio.run(one_at_a_time(target, prompt_tokens, OUTPUT_TOKENS, requests))
    after = _totals(server)
    return seen, Known(_mean_step_s(before, after, "prefill"), _mean_step_s(before, after, "decode"))


def _colocated_alone(server: Server, target: Target, prompt_tokens: int, requests: int) -> tuple[Seen, Known]:
    """Two series: prompts of one token of output, whose steps are all prefills of one step each, and longer ones."""
    before = _totals(server)
    asyncio.run(one_at_a_time(target, prompt_tokens, 1, requests))
    between = _totals(server)
    seen = asyncio.run(one_at_a_time(target, prompt_tokens, OUTPUT_TOKENS, requests))
    prefill_s, mean_s = _mean_step_s(before, between, "decode"), _mean_step_s(between, _totals(server), "decode")
    return seen, Known(prefill_s, (OUTPUT_TOKENS * mean_s - prefill_s) / (OUTPUT_TOKENS - 1))


def _totals(server: Server) -> Totals:
    time.sleep(STATUS_S)
    return step_totals(server.port)


def _mean_step_s(before: Totals, after: Totals, role: str) -> float:
    seconds, steps = since(before, after, role)
    if steps < 1:
        raise ServerFailed(f"{role} workers told of no step within {STATUS_S:g} s; is the machine overloaded?")
    return seconds / steps


def _round(started: Mapping[str, tuple[Server, Target]], subject: Subject) -> dict[Busy, Together]:
    """Every combination once; the cluster that has nothing to do is held stopped."""
    found = {}
    for name, (server, target) in started.items():
        server.resume()
        found |= {busy: _together(server, target, subject, name, busy) for busy in TOGETHER[name]}
        server.park()
    return found


def _together(server: Server, target: Target, subject: Subject, name: str, busy: Busy) -> Together:
    """So many workers compute prompts of one token of output, so many long outputs.

    Long prompts: the fewer requests, the less the front and the clients, who want the same cores, are in what is seen.
    """
    clients = [1] * busy[0] + [subject.most_output_tokens] * busy[1]
    before = _totals(server)
    began_s = time.perf_counter()
    asyncio.run(_all_ask(target, subject.long_tokens, clients))
    took_s = time.perf_counter() - began_s
    after = _totals(server)
    step_s, share = [], []
    for role, num in zip(ROLES[name], busy, strict=True):
        step_s.append(_mean_step_s(before, after, role) if num else math.nan)
        share.append(since(before, after, role)[0] / took_s / max(1, num))
    return Together((step_s[0], step_s[1]), (share[0], share[1]))


async def _all_ask(target: Target, prompt_tokens: int, output_tokens: Sequence[int]) -> None:
    """A client for each of them, for TOGETHER_S."""
    until_s = time.perf_counter() + TOGETHER_S
    async with asyncio.timeout(TOGETHER_S + LIMIT_S), asyncio.TaskGroup() as group:
        for client, tokens in enumerate(output_tokens):
            group.create_task(_keep_asking(target, prompt_tokens, tokens, client, until_s))


async def _keep_asking(target: Target, prompt_tokens: int, output_tokens: int, client: int, until_s: float) -> None:
    num = 1000  # prompts, each used once
    workload = Workload.of(np.full(num, prompt_tokens), np.full(num, output_tokens), np.zeros(num))
    prompts = Prompts(workload, target.vocab_size, time.time_ns() % (1 << 40) + client, target.wants_text)
    pool = target.pool()
    try:
        for index in range(num):
            if time.perf_counter() > until_s:
                return
            await pool.ask(target.request(prompts.of(index), output_tokens))
    finally:
        await pool.close()
