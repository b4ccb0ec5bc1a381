"""The seconds outside steps and transfers: one request at a time through real clusters whose steps take a known time.

Beyond its step, TTFT has front + 2 messages + wake; what TPOT has beyond its steps is the gap between them. In a split
cluster the simulator then has one unknown left, the message, and it is what makes the second token come when the real
one did. A split front is longer: two workers are told, and a handoff begins. Between requests everything rests, as it
does under traffic: processes that slept for some milliseconds take longer to answer than busy ones.

Steps take a known time on the mock engine, where it is given, and on the real one, whose workers count it (served.py).
"""

from __future__ import annotations

import asyncio
import queue
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.profiler.alone import Seen, alone_in, equally_likely, one_at_a_time
from bench.profiler.cluster import running
from bench.profiler.together import all_ask
from placement.latency.served import MockServed
from placement.simulator.cluster import ClusterSpec, Delays, LinkSpec, Warming, WorkerSpec
from scheduling.batching import SchedulerConfig
from scheduling.latency import LatencyCoefficients, LatencyModel, save_profile
from scheduling.routing import Role

STEPS = LatencyCoefficients(base_s=6e-3, per_prefill_token_s=1.5e-4)  # of the mock engine: as long as real ones
PROMPT_TOKENS, OUTPUT_TOKENS = 512, 33
AT_ONCE, AT_ONCE_S = 8, 4.0  # clients, and how long they ask
SHORT_PROMPT, LONG_OUTPUT = 16, 128  # theirs: hardly anything but decodes
BLOCK_SIZE, BLOCK_BYTES, NUM_BLOCKS = 16, 1024, 4096
REQUESTS = 40
STEADY = Warming(0.0, 0.0)
_MESSAGE_STEP_S = 1e-3


@dataclass(frozen=True, slots=True)
class Known:
    """The steps of these requests, as a `StepTimes`: the whole prompt is one step."""

    prefill_s: float
    decode_s: float  # in a long row
    warming: Warming = STEADY

    def batch_s(self, prefill_tokens: int, prefill_pairs: float, decode_sequences: int, context_tokens: int) -> float:
        return self.prefill_s if prefill_tokens else self.decode_s

    @property
    def later_s(self) -> float:
        """The mean step behind the first decode."""
        return self.decode_s + self.warming.mean_s(1, OUTPUT_TOKENS - 1)


MOCK = Known(LatencyModel(STEPS).step_s(PROMPT_TOKENS, 0, 0), STEPS.base_s)


@dataclass(frozen=True, slots=True)
class Trip:
    """What every one of these requests is, and what carries its KV."""

    prompt_tokens: int
    block_bytes: int
    link: LinkSpec


@dataclass(frozen=True, slots=True)
class Measured:
    """Of each kind of cluster."""

    split: Delays
    colocated: Delays
    mock: MockServed | None = None  # where it is the mock engine's


def measure_delays(log_dir: Path, link: LinkSpec | None = None, requests: int = REQUESTS) -> Measured:
    """Starts both clusters on the mock engine. Errors: ServerFailed, BadAnswer."""
    profile = log_dir / "delays.json"
    save_profile(profile, LatencyModel(STEPS))
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
            seen[name] = asyncio.run(one_at_a_time(target, PROMPT_TOKENS, OUTPUT_TOKENS, requests))
            if name == "split":
                lengths = [(SHORT_PROMPT, LONG_OUTPUT)] * AT_ONCE
                at_once_s = asyncio.run(all_ask(target, lengths, 0.0, AT_ONCE_S))
            server.park()
    trip = Trip(PROMPT_TOKENS, BLOCK_BYTES, link or LinkSpec(1e12))
    delays = delays_of((seen["colocated"], MOCK), (seen["split"], MOCK), wake_up_s(), trip)
    return replace(delays, mock=mock_served(list(seen.values()), seen["split"].gap_s, at_once_s))


def mock_served(alone: Sequence[Seen], gap_s: float, at_once_s: Sequence[float]) -> MockServed:
    """From requests that were alone, the time between a lone one's tokens, and between those of AT_ONCE together."""
    more_s = 0.0 if not at_once_s else (statistics.median(at_once_s) - gap_s) / (AT_ONCE - 1)
    off_s = [one - seen.ttft_s for seen in alone for one in seen.each_ttft_s]
    return MockServed(max(0.0, more_s), equally_likely(off_s))


def delays_of(colocated: tuple[Seen, Known], split: tuple[Seen, Known], wake_s: float, trip: Trip) -> Measured:
    """The delays that make the simulator see the same; none is negative."""
    between = [Delays(step_s=max(0.0, seen.gap_s - known.later_s), wake_s=wake_s) for seen, known in (split, colocated)]
    at_0, at_1 = (_second_s(replace(between[0], message_s=one), split[1], trip) for one in (0.0, _MESSAGE_STEP_S))
    message_s = max(0.0, (split[0].second_s - at_0) / (at_1 - at_0) * _MESSAGE_STEP_S)
    outside_s = [seen.ttft_s - known.prefill_s - wake_s for seen, known in (split, colocated)]
    messages_s = [message_s, max(0.0, min(message_s, outside_s[1] / 2.0))]  # no handoff says more of a colocated one's
    return Measured(
        *(
            replace(one, front_s=max(0.0, around_s - 2.0 * message), message_s=message)
            for one, around_s, message in zip(between, outside_s, messages_s, strict=True)
        )
    )


def _second_s(delays: Delays, known: Known, trip: Trip) -> float:
    """When the simulated second token comes after the first: exactly linear in the message's time."""
    config = SchedulerConfig(max_model_len=4096, max_num_seqs=64, max_num_batched_tokens=trip.prompt_tokens)
    workers = tuple(
        WorkerSpec(role.value, role, config, NUM_BLOCKS, BLOCK_SIZE, known) for role in (Role.PREFILL, Role.DECODE)
    )
    twin = ClusterSpec(workers, trip.block_bytes, trip.link, delays, warming=known.warming)
    return alone_in(twin, trip.prompt_tokens, 2)[1]


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
