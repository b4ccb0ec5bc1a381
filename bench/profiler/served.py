"""What a worker that serves adds: the model behind the real doors, one request at a time, then several workers at once.

Back to back on an engine alone, steps are as short as they get. A worker's have rested before, its interpreter has
messages to write beside them, and on a CPU its caches and cores are others' too. Workers count what their steps take
(`pdserve_step_seconds`); what that is beyond the profile's own curve is constant per step, so far as we have seen.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.load.target import Target
from bench.profiler.alone import Seen, equally_likely, mean_step_s, one_at_a_time, totals_of
from bench.profiler.cluster import running
from bench.profiler.delays import BLOCK_SIZE, OUTPUT_TOKENS, REQUESTS, Known, Measured, Trip, delays_of, wake_up_s
from bench.profiler.mixed import Lengths, beside_an_output, mixed_extra_s
from bench.profiler.together import CLUSTERS, Load, one_round, slowdown_of
from bench.served.server import Server
from placement.latency.served import Extras, ServedSteps, as_piecewise
from placement.simulator.cluster import Jitter, LinkSpec, StepTimes, Warming

MOST_RATIO = 0.95  # of one decode's delay to the one's before it
TOGETHER_S, TOGETHER_ROUNDS = 2.0, 4
TOGETHER_PROMPTS, TOGETHER_DECODES = 4, 50  # of one worker, for which there must be time
SHORTEST_S = 1e-4  # of a decode: a fit may say 0 where it was not measured
JITTER_HOLD_S = 0.25  # means over 30 and over 250 ms of decodes vary alike: what there is, stays that long
LEAST_FACTOR = 0.5
ONE_OUTPUT = 0.35  # of that time, were it alone: beside others it must end too


@dataclass(frozen=True, slots=True)
class Served:
    """Of one model."""

    steps: ServedSteps
    delays: Measured


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
        server, target = started["colocated"]
        colocated = _colocated_alone(server, target, subject, subject.prompt_tokens, requests)
        long_colocated = _colocated_alone(server, target, subject, subject.long_tokens, requests // 2)
        beside_s = asyncio.run(beside_an_output(target, _lengths(subject), requests))
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
        asyncio.run(one_at_a_time(target, subject.long_tokens, OUTPUT_TOKENS, 1))  # warms it up, as the other is by now
        server.park()
        load = _load(subject)
        rounds = [one_round(started, load) for _ in range(TOGETHER_ROUNDS)]
    trip = Trip(subject.prompt_tokens, subject.kv_bytes_per_token * BLOCK_SIZE, subject.link)
    warming = warming_of([colocated[0].gaps_s, *(one[0].gaps_s[1:] for one in (split, long))])
    long_prompt_s = long[1].prefill_s * _chunks(subject, subject.long_tokens)
    steps = ServedSteps(
        _extras(subject, split[1], long[1], warming),
        _extras(subject, colocated[1], long_colocated[1], warming),
        warming,
        slowdown_of(rounds, subject.at_once),
        jitter_of([(colocated[0], colocated[1].prefill_s), (split[0], split[1].prefill_s), (long[0], long_prompt_s)]),
    )
    alone = [(seen, _in_a_row(known, warming)) for seen, known in (colocated, split)]
    delays = delays_of(*alone, wake_up_s(), trip)
    more_s = mixed_extra_s(beside_s, _lengths(subject), as_piecewise(subject.times), steps, delays.colocated)
    split_extras, colocated_extras = (replace(one, mixed_s=more_s) for one in (steps.split, steps.colocated))
    return Served(replace(steps, split=split_extras, colocated=colocated_extras), delays)


def warming_of(gaps_s: Sequence[Sequence[float]]) -> Warming:
    """From the times between the tokens of lone requests, in several clusters; the second half of each is steady.

    Split clusters leave out the first time, which has the handoff in it: so all are put side by side by their ends. Of
    the mean, the geometric series with the same sum, and the same sum of delay times place. None where the first half
    is no slower.
    """
    most = max(map(len, gaps_s), default=0)
    more_s: list[list[float]] = [[] for _ in range(most // 2)]
    for row in gaps_s:
        if len(row) < 2:
            continue
        steady_s = statistics.median(row[-(most - most // 2) :])
        for place, gap_s in enumerate(row, most - len(row)):
            if place < len(more_s):
                more_s[place].append(gap_s - steady_s)
    means_s = [statistics.fmean(column) for column in more_s if column]
    total_s, moment = sum(means_s), sum(place * one for place, one in enumerate(means_s, 1))
    if total_s <= 0.0 or moment <= 0.0:
        return Warming(0.0, 0.0)
    ratio = min(max(0.0, 1.0 - total_s / moment), MOST_RATIO)
    return Warming(total_s * (1.0 - ratio), ratio)


def jitter_of(series: Sequence[tuple[Seen, float]]) -> Jitter:
    """From requests that were alone, and what the steps of each one's prompt take: how far each was off its median.

    What a first token's time varies by is its steps' in full, which are nearly all of it.
    """
    prompts, decodes = [], []
    for seen, prompt_s in series:
        prompts += [max(LEAST_FACTOR, 1.0 + (one - seen.ttft_s) / prompt_s) for one in seen.each_ttft_s]
        decodes += [max(LEAST_FACTOR, one / max(seen.gap_s, SHORTEST_S)) for one in seen.each_gap_s]
    return Jitter(JITTER_HOLD_S, equally_likely(prompts), equally_likely(decodes))


def _in_a_row(known: Known, warming: Warming) -> Known:
    """What workers counted of the first decodes, told apart."""
    return Known(known.prefill_s, max(0.0, known.decode_s - warming.mean_s(0, OUTPUT_TOKENS - 1)), warming)


def expected(subject: Subject, prompt_tokens: int) -> Known:
    """A mean step of the prompt and a mean decode, on an engine alone."""
    times, starts = subject.times, range(0, prompt_tokens, subject.chunk_tokens)
    chunks = [(start, min(subject.chunk_tokens, prompt_tokens - start)) for start in starts]
    prefills = [times.batch_s(n, n * (2 * start + n + 1) / 2, 0, start + n) for start, n in chunks]
    decodes = [times.batch_s(0, 0.0, 1, prompt_tokens + i) for i in range(1, OUTPUT_TOKENS)]
    return Known(statistics.fmean(prefills), statistics.fmean(decodes))


def _chunks(subject: Subject, prompt_tokens: int) -> int:
    """Steps of a prompt."""
    return math.ceil(prompt_tokens / subject.chunk_tokens)


def _extras(subject: Subject, short: Known, long: Known, warming: Warming) -> Extras:
    """Of one kind of cluster, the mean of two lengths; steps of both are not known yet."""
    served = {subject.prompt_tokens: short, subject.long_tokens: long}
    rows = [_extra(known, expected(subject, tokens), warming) for tokens, known in served.items()]
    prefill_s, decode_s = (max(0.0, statistics.fmean(column)) for column in zip(*rows, strict=True))
    return Extras(prefill_s, decode_s, 0.0)


def _extra(served: Known, alone: Known, warming: Warming) -> tuple[float, float]:
    return served.prefill_s - alone.prefill_s, _in_a_row(served, warming).decode_s - alone.decode_s


def _split_alone(server: Server, target: Target, prompt_tokens: int, requests: int) -> tuple[Seen, Known]:
    """Each role counts steps of its own kind."""
    before = totals_of(server)
    seen = asyncio.run(one_at_a_time(target, prompt_tokens, OUTPUT_TOKENS, requests))
    after = totals_of(server)
    return seen, Known(mean_step_s(before, after, "prefill"), mean_step_s(before, after, "decode"))


def _colocated_alone(
    server: Server, target: Target, subject: Subject, prompt_tokens: int, requests: int
) -> tuple[Seen, Known]:
    """Two series: prompts of one token of output, whose steps are all of prompts, and longer ones."""
    before = totals_of(server)
    asyncio.run(one_at_a_time(target, prompt_tokens, 1, requests))
    between = totals_of(server)
    seen = asyncio.run(one_at_a_time(target, prompt_tokens, OUTPUT_TOKENS, requests))
    prefill_s, mean_s = mean_step_s(before, between, "decode"), mean_step_s(between, totals_of(server), "decode")
    prompts, decodes = _chunks(subject, prompt_tokens), OUTPUT_TOKENS - 1
    return seen, Known(prefill_s, ((prompts + decodes) * mean_s - prompts * prefill_s) / decodes)


def _lengths(subject: Subject) -> Lengths:
    """Long prompts: several mixed steps, of which something is to be seen."""
    return Lengths(subject.long_tokens, subject.chunk_tokens, subject.prompt_tokens, subject.most_output_tokens)


def _load(subject: Subject) -> Load:
    """Windows long enough for a slow model's prompts and decodes, and not for a fast one's accidents only."""
    alone = expected(subject, subject.long_tokens)
    prompt_s = alone.prefill_s * _chunks(subject, subject.long_tokens)
    seconds = max(TOGETHER_S, TOGETHER_PROMPTS * prompt_s + TOGETHER_DECODES * alone.decode_s)
    most = ONE_OUTPUT * seconds / max(alone.decode_s, SHORTEST_S)
    output_tokens = min(int(most), subject.most_output_tokens)
    return Load(subject.long_tokens, min(subject.chunk_tokens, subject.long_tokens), output_tokens, seconds)
