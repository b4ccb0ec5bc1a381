"""Times steps of an engine's runner, in rounds over all shapes, until the time is up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.profiler.shapes import Limits, Shape
from pdserve.ids import SequenceKey
from pdserve.sampling import SamplingParams
from placement.latency.fitted_points import StepPoint
from scheduling.step import SampleRequest, SequenceStep, StepRunner
from worker.assembly import BuiltEngine

ROUNDS = 15  # at most
TIMED = 2  # of a visit, behind one that is not: its block tables are new
WARM_S = 0.03  # of decodes that are not timed: the first dozen after another kind of step take up to a third longer
TOKEN_ID = 7

Clock = Callable[[], float]
"""Seconds from any origin."""
Watch = Callable[[int, int], None]
"""Told of (visits made, visits in all)."""


def limits_of(engine: BuiltEngine) -> Limits:
    """What its scheduler would ever put into a step."""
    config = engine.core.scheduler.config
    return Limits(
        config.max_num_batched_tokens, config.max_num_seqs, engine.max_model_len, engine.memory.num_blocks,
        engine.layout.block_size,
    )  # fmt: skip


def steps_of(shape: Shape, block_size: int) -> list[SequenceStep]:
    """What the scheduler would hand to the runner: decodes first, every sequence in blocks of its own."""
    steps, next_block = [], 0
    spans = [(shape.context - 1, 1)] * shape.decodes + list(shape.chunks)
    for index, (start, tokens) in enumerate(spans):
        end = start + tokens
        num = -(-end // block_size)
        ids = [TOKEN_ID] * end
        sample = SampleRequest(SamplingParams(max_tokens=2), ids, end)
        blocks = list(range(next_block, next_block + num))
        steps.append(SequenceStep(SequenceKey(f"profile-{index}"), ids[start:], start, blocks, sample))
        next_block += num
    return steps


@dataclass(slots=True)
class Visits:
    """Every time that was taken."""

    shapes: Sequence[Shape]
    seconds: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.seconds = [[] for _ in self.shapes]

    @property
    def complete(self) -> bool:
        """Every shape had its turn."""
        return all(self.seconds)

    def points(self) -> list[StepPoint]:
        """Medians, of the shapes that were visited."""
        found = []
        for shape, seconds in zip(self.shapes, self.seconds, strict=True):
            if not seconds:
                continue
            median = statistics.median(seconds)
            low, high = np.percentile(seconds, (25, 75))
            found.append(
                StepPoint(
                    shape.prefill_tokens,
                    shape.prefill_pairs,
                    shape.decodes,
                    shape.context_tokens,
                    median,
                    float(high - low) / median,
                    len(seconds),
                )
            )
        return found


def measure_steps(
    runner: StepRunner, limits: Limits, visits: Visits, until_s: float, watch: Watch, clock: Clock = time.perf_counter
) -> None:
    """Rounds over `visits.shapes` until ROUNDS are done or `time.monotonic()` passes `until_s`.

    Ctrl-C ends it as well (KeyboardInterrupt is the caller's): `visits` has what there is by then.
    """
    total = ROUNDS * len(visits.shapes)
    done = 0
    for _ in range(ROUNDS):
        for shape, seconds in zip(visits.shapes, visits.seconds, strict=True):
            if time.monotonic() > until_s:
                return
            seconds += timed(runner, steps_of(shape, limits.block_size), clock, 0.0 if shape.chunks else WARM_S)
            done += 1
            watch(done, total)


def timed(runner: StepRunner, steps: Sequence[SequenceStep], clock: Clock, warm_s: float = 0.0) -> list[float]:
    """Seconds of each repeat, behind one that is not timed, or more until `warm_s` are over."""
    warm_at_s = time.perf_counter() + warm_s
    runner.execute(steps)
    while time.perf_counter() < warm_at_s:
        runner.execute(steps)
    found = []
    for _ in range(TIMED):
        began = clock()
        runner.execute(steps)
        found.append(clock() - began)
    return found
