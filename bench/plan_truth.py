"""Does a plan serve what it says, and is it the best? Questions answered as `pdserve plan` does, then simulated long.

    python -m bench.plan_truth [NAME ...]

Of each question the placements that came near the answer are run again by 100,000 other requests at rates 1 % apart,
twice: what they serve is the highest rate whose last three quarters still meet both targets. A line says what the plan
says as a share of what it serves, and what it serves as a share of the best of those. `other`: what the best of the
other kind, split or colocated, is said to serve, as a share of the plan's; then as a share of what it serves. All take
five minutes of a core.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from placement.hardware.catalogue import gpu_type
from placement.latency.shape import KNOWN_SHAPES
from placement.search.answer import Answer, Outcome
from placement.search.bounds import Slo
from placement.search.build import Serving, cluster_of
from placement.search.candidate import Candidate
from placement.search.goodput import Effort
from placement.search.job import run_of, search
from placement.search.question import Question
from placement.search.search import Search
from placement.search.space import Space, candidates
from placement.simulator.give_up import GiveUp
from placement.workload.source import WorkloadSource
from placement.workload.spec import parse_workload_spec

LONG = 100_000  # requests
SEEDS = (101, 202)  # the search's own is 0
NEAR, MOST = 0.85, 5  # of the answer; placements that are looked at again
FINE = 0.01
QUICK = Effort(300, 1200, 20.0, 0.04, 8)


@dataclass(frozen=True, slots=True)
class Asked:
    """One question."""

    model: str
    context: int
    workload: str
    slo: Slo
    gpus: int
    gpu: str = "h100"
    tps: tuple[int, ...] = (1, 2, 4)
    effort: Effort = Effort()  # noqa: RUF009


ASKED = {
    "uniform": Asked("llama-3.1-8b", 1024, "input=20..800,output=1..80", Slo(0.12, 0.012), 4, tps=(1,)),
    "conv": Asked("llama-3.1-8b", 16384, "azure-conv", Slo(0.5, 0.05), 8),
    "conv-99": Asked("llama-3.1-8b", 16384, "azure-conv", Slo(0.5, 0.05, 0.99), 8),
    "code": Asked("llama-3.1-8b", 16384, "azure-code", Slo(1.0, 0.03), 8),
    "70b": Asked("llama-3.1-70b", 16384, "azure-conv", Slo(0.5, 0.05), 16, tps=(2, 4, 8)),
    "70b-tight": Asked("llama-3.1-70b", 16384, "azure-conv", Slo(0.4, 0.03), 8, tps=(2, 4, 8)),
    "a100-long": Asked("llama-3.1-8b", 4096, "input=100..500,output=200..900", Slo(1.0, 0.03), 6, "a100"),
    "l40s": Asked("llama-3.1-8b", 4096, "input=100..3000,output=20..300", Slo(2.0, 0.08), 6, "l40s", (1, 2)),
    "bursts": Asked("llama-3.1-8b", 2048, "input=100..1000,output=20..200,arrivals=gamma,cv=3", Slo(0.5, 0.03), 6,
                    tps=(1, 2)),
    "quick": Asked("llama-3.1-8b", 2048, "input=100..1000,output=20..200", Slo(0.3, 0.02), 6, effort=QUICK),
    "one-token": Asked("llama-3.1-8b", 2048, "input=100..1000,output=1", Slo(0.3, 0.02), 4),
    "l40s-long": Asked("llama-3.1-8b", 4096, "input=200..1500,output=300..1200", Slo(2.0, 0.1), 8, "l40s"),
    "13b-loose": Asked("opt-13b", 2048, "input=100..600,output=200..1000", Slo(4.0, 0.15), 4, "a100", (1, 2)),
    "70b-reasoning": Asked("llama-3.1-70b", 8192, "input=100..1000,output=1000..4000", Slo(2.0, 0.06), 8,
                           tps=(2, 4, 8)),
    "h100-tight": Asked("llama-3.1-8b", 8192, "input=1000..4000,output=500..1500", Slo(3.0, 0.025), 4),
    "a100-patient": Asked("llama-3.1-70b", 8192, "input=500..3000,output=200..1500", Slo(10.0, 0.1), 16, "a100",
                          (2, 4, 8)),
}  # fmt: skip


def screened(asked: Asked) -> Search:
    """As `pdserve plan` asks it."""
    serving, gpu = Serving(KNOWN_SHAPES[asked.model], asked.context), gpu_type(asked.gpu)
    found = Search(
        Question(asked.slo, effort=asked.effort), serving, WorkloadSource(parse_workload_spec(asked.workload))
    )
    found.screen(candidates(Space(asked.gpus, (gpu,), (gpu,), asked.tps, chunks=(512, 2048)), serving.model))
    return found


def near(answers: tuple[Answer, ...], best: Answer) -> Iterator[Candidate]:
    """Those that might serve as much, the best first."""
    yield best.candidate
    yield from (one.candidate for one in answers if one is not best and one.rate >= NEAR * best.rate)


def served(asked: Search, candidate: Candidate, said: float) -> float:
    """By long runs of other requests; the mean over the seeds."""
    cluster, slo = cluster_of(candidate, asked.serving), asked.question.slo
    first = LONG // 4
    give_up = GiveUp(slo.ttft_s, slo.tpot_s, first, int((1.0 - slo.attainment) * (LONG - first)))
    rates = []
    for seed in SEEDS:
        run = run_of(candidate, cluster, asked.source, seed)
        low, high = 0.0, 2.0 * said
        rate = said
        while high - low > FINE * high:
            low, high = (rate, high) if run(rate, LONG, give_up).complete else (low, rate)
            step = min(1.05 * rate, (low + high) / 2) if high == 2.0 * said else max(0.95 * rate, (low + high) / 2)
            rate = (low + high) / 2 if low > 0.0 and high < 2.0 * said else step
        rates.append(low)
    return sum(rates) / len(rates)


def other_kind(asked: Search, outcome: Outcome, best: Answer) -> str:
    """What the best of the other kind is said to serve, of the plan's and of what it serves."""
    others = [one for one in outcome.answers if (one.candidate.prefill is None) != (best.candidate.prefill is None)]
    found = max(others, key=lambda one: one.rate, default=None)
    if found is None or found.rate == 0.0 or found.below is not None:
        return f"{'-':>8}{'-':>9}"
    return f"{found.rate / best.rate:>8.3f}{found.rate / served(asked, found.candidate, found.rate):>9.3f}"


def main() -> int:
    """A line a question."""
    parser = argparse.ArgumentParser(prog="python -m bench.plan_truth", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ASKED)} (default: all)")
    names = parser.parse_args().names or list(ASKED)
    if unknown := [name for name in names if name not in ASKED]:
        parser.error(f"{unknown[0]} is no question; there are {', '.join(ASKED)}")
    print(f"{'question':<15}{'CPU s':>6}{'says':>8}{'/serves':>9}{'/best':>8}{'other':>8}{'/serves':>9}  the plan")
    for name in names:
        asked = screened(ASKED[name])
        before = time.process_time()
        outcome = search(asked)
        took_s, best = time.process_time() - before, outcome.best
        assert best is not None, "nothing serves"
        rates = {one: served(asked, one, best.rate) for one in list(near(outcome.answers, best))[:MOST]}
        own, most = rates[best.candidate], max(rates.values())
        said = f"{name:<15}{took_s:>6.2f}{best.rate:>8.4g}{best.rate / own:>9.3f}{own / most:>8.3f}"
        print(f"{said}{other_kind(asked, outcome, best)}  {best.candidate}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
