"""What steps of a prompt and decodes together take longer in a worker that serves: prompts beside one long output.

No worker tells such steps from others, so it is found from outside, as a message's time is (delays.py): by when the
first token of a prompt comes beside an output, in a worker and in its twin. What the twin lacks is the steps'.
"""

from __future__ import annotations

import asyncio
import statistics
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from bench.load.target import Target
from bench.profiler.alone import LIMIT_S, alone_in, one_at_a_time
from bench.profiler.delays import BLOCK_BYTES, BLOCK_SIZE
from bench.profiler.together import all_ask
from placement.latency.fitted import PiecewiseSteps
from placement.latency.served import ServedSteps
from placement.simulator.cluster import ClusterSpec, Delays, LinkSpec, WorkerSpec
from placement.simulator.requests import requests_of
from placement.simulator.simulate import simulate
from placement.workload.workload import Workload
from scheduling.batching import SchedulerConfig
from scheduling.routing import Role

MOST_S = 10.0 * LIMIT_S
INSTANTS = 16
_MORE_S = 1e-3


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of the requests."""

    prompt_tokens: int
    chunk_tokens: int
    decoding_prompt_tokens: int  # of the output beside them
    decoding_output_tokens: int


async def beside_an_output(target: Target, lengths: Lengths, requests: int) -> float:
    """Seconds to the first token of such a prompt beside an output, the median. Errors: BadAnswer, TimeoutError.

    The requests that do not count, before the others, are time for the output to begin.
    """
    output = (lengths.decoding_prompt_tokens, lengths.decoding_output_tokens)
    decoding = asyncio.create_task(all_ask(target, [output], 0.0, MOST_S))
    try:
        seen = await one_at_a_time(target, lengths.prompt_tokens, 1, requests)
    finally:
        decoding.cancel()
        with suppress(asyncio.CancelledError):
            await decoding
    return seen.ttft_s


def mixed_extra_s(seen_s: float, lengths: Lengths, steps: PiecewiseSteps, served: ServedSteps, delays: Delays) -> float:
    """Of each mixed step, so that it is `seen_s` in the twin as well; never less than nothing.

    `steps` are those of an engine alone. The time to the first token is exactly linear in it.
    """
    told_s, more_s = (
        _told_s(replace(served.colocated, mixed_s=extra_s).applied(steps), lengths, served, delays)
        for extra_s in (0.0, _MORE_S)
    )
    return max(0.0, (seen_s - told_s) / (more_s - told_s) * _MORE_S)


def _told_s(steps: PiecewiseSteps, lengths: Lengths, served: ServedSteps, delays: Delays) -> float:
    """The same of the twin, mean over prompts that come at all instants of a decode in the middle of the output."""
    one, other = lengths.prompt_tokens, lengths.decoding_prompt_tokens + lengths.decoding_output_tokens
    config = SchedulerConfig(
        max_model_len=max(one + 1, other), max_num_seqs=2, max_num_batched_tokens=lengths.chunk_tokens
    )
    num_blocks = 2 * (one + other) // BLOCK_SIZE + 2  # room enough
    worker = WorkerSpec("decode", Role.DECODE, config, num_blocks, BLOCK_SIZE, steps, False)
    twin = ClusterSpec((worker,), BLOCK_BYTES, LinkSpec(1e12), delays, warming=served.warming)
    first_s, gap_s = alone_in(twin, lengths.decoding_prompt_tokens, lengths.decoding_output_tokens)
    middle = lengths.decoding_output_tokens // 2
    instants_s = (first_s + (middle + place / INSTANTS) * gap_s for place in range(INSTANTS))
    return statistics.fmean(_first_s(twin, lengths, at_s) for at_s in instants_s)


def _first_s(twin: ClusterSpec, lengths: Lengths, at_s: float) -> float:
    """TTFT of a prompt that comes so long after the output's."""
    workload = Workload.of(
        np.array([lengths.decoding_prompt_tokens, lengths.prompt_tokens]),
        np.array([lengths.decoding_output_tokens, 1]),
        np.array([0.0, at_s]),
    )
    return float(simulate(twin, requests_of(workload)).requests.ttft_s[1])
