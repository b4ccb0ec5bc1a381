"""What holds of every answer, on random models of load, hardware, targets and budgets."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from placement.hardware.catalogue import gpu_type
from placement.latency.shape import KNOWN_SHAPES
from placement.search.bounds import Slo
from placement.search.build import Serving, cluster_of
from placement.search.candidate import Candidate, Pool
from placement.search.goodput import Effort
from placement.search.job import search, traffic
from placement.search.question import Question
from placement.search.search import Search
from placement.search.space import Space, candidates
from placement.search.whatif import AS_ASKED, Consequence, WhatIf, consistent
from placement.simulator.cluster import LinkSpec
from placement.simulator.fast.run import simulate_fast
from placement.simulator.requests import Outcome, requests_of
from placement.simulator.results import RequestColumns, SimulationResult
from placement.simulator.simulate import simulate
from placement.workload.source import WorkloadSource
from placement.workload.spec import parse_workload_spec
from placement.workload.workload import Workload

MODEL = KNOWN_SHAPES["llama-3.1-8b"]
EFFORT = Effort(min_requests=300, max_requests=1200, min_seconds=5.0, tolerance=0.03)
NEAR = 1.06  # two tolerances: what two searches may differ by
COLUMNS = ("ttft_s", "tpot_s", "e2e_s", "queue_s", "prefill_s", "transfer_s", "decode_wait_s", "decode_s", "outcome")


@dataclass(frozen=True)
class Case:
    """One random situation."""

    rng: np.random.Generator
    serving: Serving
    slo: Slo
    source: WorkloadSource
    space: Space


def case_of(seed: int) -> Case:
    rng = np.random.default_rng([7, seed])
    prompt, output = int(rng.choice([100, 600])), int(rng.choice([2, 20, 80]))
    gpu = gpu_type(str(rng.choice(["h100", "a100", "l40s"])))
    serving = Serving(
        MODEL, 1024, max_num_seqs=int(rng.choice([16, 64])), kv_bytes=float(rng.choice([1e9, 8e9])),
        link=None if rng.random() < 0.7 else LinkSpec(2e9),
    )  # fmt: skip
    slo = Slo(float(rng.choice([0.15, 0.5])), float(rng.choice([0.03, 0.08])), float(rng.choice([0.8, 0.9, 0.95])))
    source = WorkloadSource(parse_workload_spec(f"input=1..{prompt},output=1..{output}"))
    local = (0,) if rng.random() < 0.7 else (0, 64)
    return Case(rng, serving, slo, source, Space(1, (gpu,), (gpu,), (1,), chunks=(512,), local_prefill=local))


def best_rate(case: Case, gpus: int, slo: Slo) -> float:
    found = Search(Question(slo, effort=EFFORT), case.serving, case.source)
    found.screen(candidates(replace(case.space, gpus=gpus), MODEL))
    best = search(found).best
    return 0.0 if best is None else best.rate


def test_a_what_if_that_is_harder_tells_no_more_and_one_that_is_easier_no_less() -> None:
    def rates(**found: float) -> list[float]:
        named = {"asked": AS_ASKED, "half": WhatIf("half", ttft=0.5), "twice": WhatIf("twice", ttft=2.0),
                 "link": WhatIf("link", network=0.1), "short": WhatIf("short", prompts=0.5),
                 "mixed": WhatIf("mixed", prompts=0.5, ttft=0.5)}  # fmt: skip
        return [one.rate for one in consistent([Consequence(named[name], rate, "") for name, rate in found.items()])]

    assert rates(asked=100, half=104, twice=95, link=101, short=97, mixed=110) == [100, 100, 100, 100, 100, 110]
    assert rates(asked=100, half=60, twice=130, link=90, short=180, mixed=80) == [100, 60, 130, 90, 180, 80]
    assert rates(half=104, twice=95) == [104, 95]


@pytest.mark.parametrize("seed", range(8))
def test_more_gpus_never_lower_the_goodput_of_the_best_plan(seed: int) -> None:
    case = case_of(seed)
    few = int(case.rng.integers(1, 4))
    more = few + int(case.rng.integers(1, 4))
    fewer, larger = best_rate(case, few, case.slo), best_rate(case, more, case.slo)
    assert fewer > 0.0
    assert larger * NEAR >= fewer, (few, more)
    if more >= 2 * few:
        assert larger > 1.3 * fewer


@pytest.mark.parametrize("seed", range(8))
def test_a_tighter_target_never_raises_the_goodput(seed: int) -> None:
    case = case_of(seed)
    slo, gpus = case.slo, int(case.rng.integers(1, 4))
    which = str(case.rng.choice(["ttft_s", "tpot_s", "attainment"]))
    tight = {
        "ttft_s": replace(slo, ttft_s=slo.ttft_s * float(case.rng.uniform(0.2, 0.8))),
        "tpot_s": replace(slo, tpot_s=slo.tpot_s * float(case.rng.uniform(0.2, 0.8))),
        "attainment": replace(slo, attainment=0.99),
    }[which]
    loose = best_rate(case, gpus, slo)
    assert loose > 0.0
    assert best_rate(case, gpus, tight) <= NEAR * loose, which
    assert best_rate(case, gpus, Slo(1e-4, 1.0)) == 0.0


def candidate_of(case: Case) -> Candidate:
    rng, gpu = case.rng, case.space.decode_gpus[0]
    prefill = Pool(gpu, int(rng.integers(1, 4))) if rng.random() < 0.7 else None
    local = int(rng.choice([0, 100])) if prefill is not None else 0
    return Candidate(prefill, Pool(gpu, int(rng.integers(1, 3))), int(rng.choice([128, 512])), local)


def both_ways(case: Case, candidate: Candidate, workload: Workload) -> tuple[RequestColumns, RequestColumns]:
    """Compiled, and by the code that serves."""
    cluster = cluster_of(candidate, case.serving)
    return simulate_fast(cluster, workload).requests, simulate(cluster, requests_of(workload)).requests


@pytest.mark.parametrize("seed", range(12))
def test_requests_that_are_equal_may_change_places(seed: int) -> None:
    """Groups of 2 to 4 that come at once with the same lengths, shuffled within: every column is as it was."""
    case = case_of(seed)
    drawn = traffic(case.source, float(case.rng.uniform(5, 60)), 120, seed)
    drawn = replace(drawn, tenant=drawn.tenant, session=None)
    group = np.repeat(np.arange(120), case.rng.integers(1, 5, 120))
    twins = drawn.take(group)
    shuffled = np.lexsort((case.rng.random(len(group)), group))
    assert (shuffled != np.arange(len(group))).any()
    numbered = replace(twins, session=np.arange(len(group)))  # who is who, which no simulator may look at
    candidate = candidate_of(case)
    before, after = both_ways(case, candidate, numbered), both_ways(case, candidate, numbered.take(shuffled))
    for one, other in zip(before, after, strict=True):
        for name in COLUMNS:
            assert np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True), name


@pytest.mark.parametrize("seed", range(24))
def test_requests_tokens_and_blocks_are_conserved(seed: int) -> None:
    """Every fourth by the code that serves, too."""
    case = case_of(seed)
    candidate, serving = candidate_of(case), replace(case.serving, kv_bytes=float(case.rng.choice([3e8, 5e9])))
    workload = traffic(case.source, float(case.rng.uniform(5, 120)), 300, seed)
    cluster = cluster_of(candidate, serving)
    conserved(simulate_fast(cluster, workload), candidate, serving, workload)  # raises if a request or block is left
    if seed % 4 == 0:
        conserved(simulate(cluster, requests_of(workload)), candidate, serving, workload)


def conserved(result: SimulationResult, candidate: Candidate, serving: Serving, workload: Workload) -> None:
    rows = result.requests
    assert (rows.outcome == Outcome.FINISHED).all()
    assert np.array_equal(rows.prompt_tokens, workload.prompt_tokens)
    assert np.array_equal(rows.output_tokens, workload.output_tokens)
    counts = result.workers.values()
    assert all(0 <= one.peak_blocks <= serving.blocks(candidate.decode) for one in counts)
    # A prompt's last single token is a step like that of a decode, so only the sum is fixed.
    computed = sum(one.prefill_tokens + one.decode_tokens for one in counts)
    needed = workload.prompt_tokens.sum() + (workload.output_tokens - 1).sum()
    assert computed >= needed
    if max(one.peak_blocks for one in counts) < 0.9 * serving.blocks(candidate.decode):  # nobody was preempted
        assert computed == needed
    phases = rows.queue_s + rows.prefill_s + rows.transfer_s + rows.decode_wait_s + rows.decode_s
    assert np.allclose(phases, rows.e2e_s)
    if candidate.prefill is not None:
        sent = (workload.output_tokens > 1) & (workload.prompt_tokens > candidate.local_prefill_tokens)
        blocks = -(-workload.prompt_tokens[sent] // serving.block_size)
        assert result.moved_bytes >= 0.999 * blocks.sum() * serving.block_bytes
    else:
        assert result.moved_bytes == 0.0
