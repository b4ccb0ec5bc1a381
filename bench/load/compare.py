"""Two servers under the same load in turn: A B, B A, A B, ...; every round has its own seed, the same for both."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bench.load.session import Run, Settings, Watch, run_at
from bench.load.summary import Summary
from bench.load.target import Target
from placement.workload import WorkloadSource


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a run."""

    name: str
    of: Callable[[Summary], float]
    more_is_better: bool = False


FIGURES = (
    Figure("TTFT p50", lambda run: run.ttft_s.p50),
    Figure("TTFT p90", lambda run: run.ttft_s.p90),
    Figure("TTFT p99", lambda run: run.ttft_s.p99),
    Figure("TPOT p50", lambda run: run.tpot_s.p50),
    Figure("TPOT p90", lambda run: run.tpot_s.p90),
    Figure("TPOT p99", lambda run: run.tpot_s.p99),
    Figure("ITL p99", lambda run: run.itl_s.p99),
    Figure("E2E p50", lambda run: run.e2e_s.p50),
    Figure("output tokens/s", lambda run: run.output_throughput, more_is_better=True),
    Figure("attainment", lambda run: run.attainment, more_is_better=True),
)


@dataclass(frozen=True, slots=True)
class Ratio:
    """How the first server compares with the second, round by round: above 1, the first is better."""

    figure: str
    first: float  # median over rounds
    second: float
    median: float
    low: float  # the round where the first did worst
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """At one rate."""

    rate: float
    first: tuple[Run, ...]  # one a round that both ended
    second: tuple[Run, ...]
    ratios: tuple[Ratio, ...]
    interrupted: bool  # within a round, of which nothing is here


def compare_at(
    pair: tuple[Target, Target],
    source: WorkloadSource,
    rate: float | None,
    settings: Settings,
    num_rounds: int,
    first_number: int,
    watch: Watch,
    told: Callable[[Target, int, Run], None],
) -> Comparison:
    """Each round both servers, whoever was second before being first now; an interrupted round counts nowhere."""
    rounds: list[tuple[Run, Run]] = []
    asked = rate or source.own_rate or 0.0
    for number in range(num_rounds):
        seeded = replace(settings, seed=settings.seed + number)
        runs: dict[int, Run] = {}
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            try:
                run = run_at(pair[which], source, rate, seeded, first_number + number, watch)
            except KeyboardInterrupt:  # while it was made ready
                return _compared(asked, rounds, True)
            runs[which] = run
            told(pair[which], number, run)
            if run.summary.interrupted:
                return _compared(asked, rounds, True)
        rounds.append((runs[0], runs[1]))
    return _compared(asked, rounds, False)


def _compared(rate: float, rounds: Sequence[tuple[Run, Run]], interrupted: bool) -> Comparison:
    ratios = []
    for figure in FIGURES:
        pairs = [(figure.of(a.summary), figure.of(b.summary)) for a, b in rounds]
        each = [one for one in (_better(figure, *pair) for pair in pairs) if not math.isnan(one)]
        if each:
            a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratios.append(Ratio(figure.name, a, b, statistics.median(each), min(each), max(each)))
    first, second = (tuple(pair[which] for pair in rounds) for which in (0, 1))
    return Comparison(rate, first, second, tuple(ratios), interrupted)


def _better(figure: Figure, first: float, second: float) -> float:
    above, below = (first, second) if figure.more_is_better else (second, first)
    if below == 0:
        return 1.0 if above == 0 else math.nan
    return above / below
