"""The seconds outside steps and transfers: one request at a time through real clusters whose steps take a known time.

Beyond its step, TTFT has front + 2 messages + wake; what TPOT has beyond its steps is the gap between them. In a split
cluster the simulator then has one unknown left, the message, and it is what makes the second token come when the real
one did. A split front is longer: two workers are told, and a handoff begins. Between requests everything rests, as it
does under traffic: processes that slept for some milliseconds take longer to answer than busy ones.
"""

from __future__ import annotations

import asyncio
import queue
import statistics
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.load.prompts import Prompts
from bench.load.target import Target
from bench.profiler.cluster import running
from placement.simulator.cluster import ClusterSpec, Delays, LinearSteps, LinkSpec, WorkerSpec
from placement.simulator.requests import requests_of
from placement.simulator.simulate import simulate
from placement.workload.workload import Workload
from scheduling.batching import SchedulerConfig
from scheduling.latency import LatencyCoefficients, LatencyModel, save_profile
from scheduling.routing import Role

STEP_S = 4e-3
PROMPT_TOKENS, OUTPUT_TOKENS = 64, 16
BLOCK_SIZE, BLOCK_BYTES, NUM_BLOCKS = 16, 1024, 4096
WARM, REQUESTS = 4, 40
REST_S = 0.05
_MESSAGE_STEP_S = 1e-3


@dataclass(frozen=True, slots=True)
class Seen:
    """Medians over requests that were alone in the cluster, seconds."""

    ttft_s: float
    second_s: float  # token 1 to token 2
    gap_s: float  # between later tokens


@dataclass(frozen=True, slots=True)
class Measured:
    """Of each kind of cluster."""

    split: Delays
    colocated: Delays


def measure_delays(log_dir: Path, link: LinkSpec | None = None, requests: int = REQUESTS) -> Measured:
    """Starts both clusters on the mock engine. Errors: ServerFailed, BadAnswer."""
    profile = log_dir / "delays.json"
    save_profile(profile, LatencyModel(LatencyCoefficients(base_s=STEP_S)))
    clusters = {
        name: ["--mock", str(profile), "--prefill", str(prefill), "--decode", "1"]
        for name, prefill in (("colocated", 0), ("split", 1))
    }
    seen = {}
    with running(clusters, log_dir) as started:
        for _, (server, _) in started.items():
            server.park()
        for name, (server, target) in started.items():
            server.resume()
            seen[name] = asyncio.run(_one_at_a_time(target, requests))
            server.park()
    return delays_of(seen["colocated"], seen["split"], wake_up_s(), link or LinkSpec(1e12))


def delays_of(colocated: Seen, split: Seen, wake_s: float, link: LinkSpec) -> Measured:
    """The delays that make the simulator see the same; none is negative."""
    outside = Delays(step_s=max(0.0, split.gap_s - STEP_S), wake_s=wake_s)
    at_0, at_1 = (_second_s(replace(outside, message_s=one), link) for one in (0.0, _MESSAGE_STEP_S))
    message_s = max(0.0, (split.second_s - at_0) / (at_1 - at_0) * _MESSAGE_STEP_S)
    found = [
        Delays(
            max(0.0, seen.ttft_s - STEP_S - 2.0 * message_s - wake_s), message_s, max(0.0, seen.gap_s - STEP_S), wake_s
        )
        for seen in (split, colocated)
    ]
    return Measured(*found)


def _second_s(delays: Delays, link: LinkSpec) -> float:
    """When the simulated second token comes after the first: exactly linear in the message's time."""
    steps = LinearSteps(LatencyModel(LatencyCoefficients(base_s=STEP_S)))
    config = SchedulerConfig(max_model_len=4096, max_num_seqs=64, max_num_batched_tokens=512)
    workers = tuple(
        WorkerSpec(role.value, role, config, NUM_BLOCKS, BLOCK_SIZE, steps) for role in (Role.PREFILL, Role.DECODE)
    )
    workload = Workload.of(np.array([PROMPT_TOKENS]), np.array([2]), np.array([0.0]))
    result = simulate(ClusterSpec(workers, BLOCK_BYTES, link, delays), requests_of(workload))
    return float(result.requests.tpot_s[0])


async def _one_at_a_time(target: Target, requests: int) -> Seen:
    num = WARM + requests
    workload = Workload.of(np.full(num, PROMPT_TOKENS), np.full(num, OUTPUT_TOKENS), np.arange(num, dtype=float))
    prompts = Prompts(workload, target.vocab_size, time.time_ns() % (1 << 40), target.wants_text)
    pool = target.pool()
    rows: list[tuple[float, float, float]] = []
    try:
        for index in range(num):
            request = target.request(prompts.of(index), OUTPUT_TOKENS)
            begin_s = time.perf_counter()
            async with asyncio.timeout(30.0):
                answer = await pool.ask(request)
            later = answer.gaps_s[1:]
            rows.append((answer.first_s - begin_s, answer.gaps_s[0], statistics.fmean(later)))
            await asyncio.sleep(REST_S)
    finally:
        await pool.close()
    return Seen(*(statistics.median(column) for column in zip(*rows[WARM:], strict=True)))


def wake_up_s(tries: int = 100) -> float:
    """How long a thread that waits in a queue takes to have what another puts there."""
    there: queue.SimpleQueue[float | None] = queue.SimpleQueue()
    found: list[float] = []

    def wait() -> None:
        while (put_s := there.get()) is not None:
            found.append(time.perf_counter() - put_s)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    for _ in range(tries):
        time.sleep(0.001)
        there.put(time.perf_counter())
    there.put(None)
    thread.join()
    return statistics.median(found)
