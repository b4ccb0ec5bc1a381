"""Load on one server: warm it, run it at a rate, search its goodput."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from bench.load.goodput import Decision, Goodput, Probe, RateSearch, Verdict
from bench.load.open_loop import LoopPlan
from bench.load.processes import Ran, processes_needed, run_loop
from bench.load.prompts import Prompts
from bench.load.result import BadAnswer, Outcome, Result
from bench.load.statistics import wilson
from bench.load.summary import Objective, Summary, summarize
from bench.load.target import Door, Target
from pdserve.exit import ExitCode, StartError
from pdserve.slo import Slo
from placement.workload import Workload, WorkloadSource, generate
from placement.workload.lengths import Fixed, Pairs

WARM_SEED = 1 << 40  # beyond those of measured runs
WARM_AT_ONCE = 4
LONGEST_S = 30 * 86400  # of a run
PROBE_SKIP = 0.1  # of a probe's requests come while the server fills up


@dataclass(frozen=True, slots=True)
class Settings:
    """How load is made; the same for every rate and server of a command."""

    objective: Objective
    seed: int = 0  # of arrivals and lengths
    prompt_seed: int = 0  # of tokens; every run adds its number, so that no run finds another's prompts cached
    num_requests: int | None = None  # of a run; None: by the duration, or the workload's own
    duration_s: float | None = None
    skip_s: float = 0.0  # from the begin of a run, not counted
    timeout_s: float = 600.0
    max_open: int | None = None
    num_processes: int | None = None  # None: as many as the rate needs
    tell_slo: bool = True  # to our own server, which then judges, and may reject what it cannot serve in time

    @property
    def slo(self) -> Slo | None:
        wanted = self.tell_slo and (self.objective.ttft_s is not None or self.objective.tpot_s is not None)
        return Slo("default", self.objective.ttft_s, self.objective.tpot_s) if wanted else None


@dataclass(frozen=True, slots=True)
class Run:
    """One run and all of its requests."""

    rate: float  # that was asked for
    summary: Summary
    results: tuple[Result, ...]


Watch = Callable[[float, int, int], None]
"""Told of progress some times a second: seconds, requests ended, requests in all."""


def warm_up(
    target: Target, workload: Workload, num: int, timeout_s: float, prompt_seed: int, what: str = "a warm-up request"
) -> None:
    """Requests that do not count, a few at a time, lengths as in the workload; StartError where one fails."""
    try:
        asyncio.run(_warm_up(target, workload, num, timeout_s, prompt_seed + WARM_SEED))
    except (BadAnswer, TimeoutError) as error:
        raise StartError(f"{target.name} failed {what}: {str(error) or f'no end in {timeout_s:g} s'}") from None


async def _warm_up(target: Target, workload: Workload, num: int, timeout_s: float, prompt_seed: int) -> None:
    rows = np.arange(num) % len(workload)
    asked = replace(workload.take(rows), texts=None, prefixes=None)
    prompts = Prompts(asked, target.vocab_size, prompt_seed, target.wants_text)
    pool, left = target.pool(), iter(range(num))

    async def one_after_another() -> None:
        for index in left:
            request = target.request(prompts.of(index), int(asked.output_tokens[index]))
            async with asyncio.timeout(timeout_s):
                await pool.ask(request)

    try:
        await asyncio.gather(*(one_after_another() for _ in range(min(num, WARM_AT_ONCE))))
    finally:
        await pool.close()


def check_fits(target: Target, workload: Workload) -> None:
    """Raises StartError where a request is longer than the server's context, or the last comes in months."""
    if len(workload) and workload.arrival_s[-1] > LONGEST_S:
        raise StartError(
            f"the workload's requests come over {workload.arrival_s[-1]:.3g} s, a run is {LONGEST_S:,} s long at most: "
            "give a higher --rate or fewer --num-requests", ExitCode.WORKLOAD,
        )  # fmt: skip
    if target.max_model_len is None or not len(workload):
        return
    total = workload.prompt_tokens + workload.output_tokens
    longest = int(total.argmax())
    if total[longest] > target.max_model_len:
        raise StartError(
            f"the workload's longest request has {workload.prompt_tokens[longest]:,} + "
            f"{workload.output_tokens[longest]:,} tokens; {target.name} takes {target.max_model_len:,}: "
            f"say max-total={target.max_model_len} in --workload, or --max-total", ExitCode.WORKLOAD,
        )  # fmt: skip


def run_at(
    target: Target, source: WorkloadSource, rate: float | None, settings: Settings, number: int, watch: Watch
) -> Run:
    """The command's run of that number; a rate of None is the workload's own."""
    workload = source.build(
        rate=rate, num_requests=settings.num_requests, duration_s=settings.duration_s, seed=settings.seed
    )
    check_fits(target, workload)
    if settings.skip_s > workload.arrival_s[-1]:
        raise StartError(
            f"--skip is {settings.skip_s:g} s; the run's last request comes after {workload.arrival_s[-1]:.3g} s",
            ExitCode.CONFIG,
        )
    results: list[Result] = []

    def tick(now_s: float) -> bool:
        watch(now_s, len(results), len(workload))
        return False

    ran = _run(target, workload, settings, number, results.append, tick)
    watch(ran.elapsed_s, len(results), len(workload))
    results.sort(key=lambda one: one.index)
    summary = summarize(results, workload, ran, settings.objective, settings.skip_s, _judges(target, settings))
    return Run(rate or source.own_rate or 0.0, summary, tuple(results))


def _judges(target: Target, settings: Settings) -> bool:
    """Whether the server is told the objective, so that its blame is of our misses."""
    return target.door is Door.GRPC and settings.slo is not None


def _run(
    target: Target,
    workload: Workload,
    settings: Settings,
    number: int,
    emit: Callable[[Result], None],
    tick: Callable[[float], bool],
) -> Ran:
    plan = LoopPlan(
        target,
        workload,
        range(len(workload)),
        settings.prompt_seed + number,
        settings.slo,
        settings.timeout_s,
        settings.max_open,
    )
    return run_loop(plan, settings.num_processes or processes_needed(workload, target.door), emit, tick)


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How goodput is searched."""

    attainment: float = 0.9
    resolution: float = 0.05  # of the rate: the lowest that fails is at most so much above the highest that passes
    confidence: float = 0.95  # of each decision
    min_probe_s: float = 30.0  # a short probe passes at rates that no queue could stand for long
    min_requests: int = 200
    lowest: float = 1e-3
    highest: float = 1e6


class Interrupted(Exception):
    """Ctrl-C, within a search."""


def find_goodput(
    target: Target,
    source: WorkloadSource,
    start_rate: float,
    settings: Settings,
    search: SearchSettings,
    watch: Watch,
    told: Callable[[Probe, Summary], None],
) -> Goodput:
    """Probes until the rate is known to the resolution; what it has, when interrupted or when the server ends."""
    rates = RateSearch(start_rate, search.resolution, search.lowest, search.highest)
    number = 0
    try:
        while (rate := rates.next_rate()) is not None:
            probe, summary = _probe(target, source, rate, settings, number, search, watch)
            number += 1
            if summary.outcomes.get("failed") and not target.listens():
                told(replace(probe, decision=Decision.SERVER_ENDED), summary)
                return replace(rates.result(), complete=False, server_ended=True)
            rates.tell(probe)
            told(probe, summary)
            _settle(target, settings.prompt_seed + number)
    except Interrupted:
        pass
    return rates.result()


def _probe(
    target: Target,
    source: WorkloadSource,
    rate: float,
    settings: Settings,
    number: int,
    search: SearchSettings,
    watch: Watch,
) -> tuple[Probe, Summary]:
    num = max(search.min_requests, int(rate * search.min_probe_s))
    workload = source.build(rate=rate, num_requests=num, seed=settings.seed)
    check_fits(target, workload)
    objective = settings.objective
    skip = int(PROBE_SKIP * len(workload))
    verdict = Verdict(len(workload), search.attainment, search.confidence, skip)
    limits = [objective.longest_s(int(tokens)) for tokens in workload.output_tokens]
    results: list[Result] = []
    overdue = 0

    def emit(result: Result) -> None:
        results.append(result)
        if result.outcome is not Outcome.INTERRUPTED:
            verdict.tell(result.index, result.meets(objective.ttft_s, objective.tpot_s))

    def tick(now_s: float) -> bool:
        nonlocal overdue
        while overdue < len(workload) and now_s > workload.arrival_s[overdue] + (limits[overdue] or np.inf) + 0.1:
            if not verdict.is_known(overdue):
                verdict.tell(overdue, False)  # too late for both targets, whenever it ends
            overdue += 1
        watch(now_s, len(results), len(workload))
        return verdict.decision is not None

    ran = _run(target, workload, settings, number, emit, tick)
    if ran.interrupted:
        raise Interrupted
    skip_s = float(workload.arrival_s[skip]) if skip else 0.0
    summary = summarize(results, workload, ran, objective, skip_s, _judges(target, settings))
    limits_of = wilson(verdict.num_met, verdict.num_known)
    return Probe(rate, verdict.concluded(), verdict.num_met, verdict.num_known, limits_of), summary


def _settle(target: Target, prompt_seed: int) -> None:
    """Until the server answers one short request: what a probe cut off is out of its way."""
    time.sleep(0.5)
    one = generate(Pairs(Fixed(8), Fixed(2)), None, 1)
    try:
        warm_up(target, one, 1, 60.0, prompt_seed, "the short request between two probes")
    except KeyboardInterrupt:
        raise Interrupted from None
