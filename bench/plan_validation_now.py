"""How fast the machine is just now: lone requests before a run, beside what the twin says of them.

A profile is as old as it is, and a shared machine is half as fast from one quarter of an hour to the next. What lone
requests take knows nothing of queues, batches and neighbours: those are still the simulator's to predict.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from bench.load.target import Target
from bench.profiler.alone import Seen, alone_in, one_at_a_time
from placement.latency.fitted import PiecewiseSteps
from placement.latency.served import as_piecewise
from placement.simulator.cluster import ClusterSpec, StepTimes

LONE = 8  # requests that count


@dataclass(frozen=True, slots=True)
class Speed:
    """Seen / predicted, of lone requests."""

    first: float  # TTFT
    later: float  # TPOT


def speed_now(target: Target, twin: ClusterSpec, prompt_tokens: int, output_tokens: int) -> Speed:
    """Asks LONE requests of these lengths, one at a time. Errors: BadAnswer, TimeoutError."""
    seen = asyncio.run(one_at_a_time(target, prompt_tokens, output_tokens, LONE))
    return speed_of(seen, twin, prompt_tokens, output_tokens)


def speed_of(seen: Seen, twin: ClusterSpec, prompt_tokens: int, output_tokens: int) -> Speed:
    """The same from what was seen; at least two output tokens tell of TPOT."""
    told_ttft_s, told_tpot_s = alone_in(twin, prompt_tokens, output_tokens)
    if output_tokens < 2:
        return Speed(seen.ttft_s / told_ttft_s, 1.0)
    tpot_s = (seen.second_s + (output_tokens - 2) * seen.gap_s) / (output_tokens - 1)
    return Speed(seen.ttft_s / told_ttft_s, tpot_s / told_tpot_s)


def at_speed(twin: ClusterSpec, speed: Speed) -> ClusterSpec:
    """The twin on a machine of that speed: prompts and messages by the first token's, decodes by the later ones'."""
    workers = tuple(replace(one, step_times=_scaled(one.step_times, speed)) for one in twin.workers)
    d, first = twin.delays, speed.first
    delays = replace(
        d, front_s=first * d.front_s, message_s=first * d.message_s, wake_s=first * d.wake_s,
        step_s=speed.later * d.step_s,
    )  # fmt: skip
    slowdown, warming = twin.slowdown, twin.warming
    return replace(
        twin, workers=workers, delays=delays,
        slowdown=slowdown and replace(slowdown, rested_prompts_s=first * slowdown.rested_prompts_s),
        warming=warming and replace(warming, first_s=speed.later * warming.first_s),
    )  # fmt: skip


def _scaled(times: StepTimes, speed: Speed) -> PiecewiseSteps:
    fit = as_piecewise(times)
    return replace(
        fit,
        prefill=fit.prefill.scaled(speed.first),
        decode=fit.decode.scaled(speed.later),
        mixed=fit.mixed.scaled(speed.first),
        large_decode=None if fit.large_decode is None else fit.large_decode.scaled(speed.later),
    )
