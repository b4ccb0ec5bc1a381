"""Whether what a plan says lasts: the whole of a trace, and runs of tens of stays."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploy.planning.answer import more_lines
from placement.hardware.catalogue import gpu_type
from placement.latency.shape import KNOWN_SHAPES
from placement.search import trace
from placement.search.answer import Answer, Outcome
from placement.search.bounds import Bounds, Screen, Slo
from placement.search.bracket import Attainment, Verdict
from placement.search.build import Serving, cluster_of
from placement.search.candidate import Candidate, Pool
from placement.search.goodput import WARM_UP, Effort, Goodput, look
from placement.search.job import deciding, do_job, run_of, search
from placement.search.lasting import lasting
from placement.search.question import Job, Question
from placement.search.race import Races
from placement.search.search import Search
from placement.search.space import Space, candidates
from placement.search.trace import sample_of
from placement.simulator.give_up import GiveUp
from placement.workload.source import WorkloadSource
from placement.workload.spec import parse_workload_spec

H100 = gpu_type("h100")
SERVING = Serving(KNOWN_SHAPES["llama-3.1-8b"], 8192)
SLO = Slo(0.5, 0.05)
EFFORT = Effort(min_requests=100, max_requests=400, min_seconds=5.0, tolerance=0.03)


@pytest.fixture
def growing(tmp_path: Path) -> WorkloadSource:
    """A trace whose last half has prompts ten times as long."""
    path = tmp_path / "trace.jsonl"
    lines: list[dict[str, object]] = [
        {"timestamp": 100 * i, "input_length": 300 if i < 500 else 3000, "output_length": 20, "hash_ids": []}
        for i in range(1000)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return WorkloadSource(parse_workload_spec(str(path)))


def test_a_run_that_decides_takes_the_whole_trace(growing: WorkloadSource) -> None:
    candidate = Candidate(None, Pool(H100, 1), 512)
    cluster = cluster_of(candidate, SERVING)
    effort = deciding(EFFORT, cluster, growing)
    found, result = look(run_of(candidate, cluster, growing, 0), 5.0, SLO, effort)
    assert found.num_requests * (1 - WARM_UP) == pytest.approx(1000, abs=1)
    prompts = result.requests.prompt_tokens[int(WARM_UP * found.num_requests) :]
    assert np.mean(prompts) == pytest.approx(1650, rel=0.01)
    assert effort.shortest.whole == 0 and all(one.whole == 0 for one in effort.shorter(10.0))


def test_a_plan_of_a_trace_that_grows_serves_its_last_requests_too(growing: WorkloadSource) -> None:
    asked = Search(Question(SLO, effort=EFFORT), SERVING, growing)
    asked.screen(candidates(Space(1, (H100,), (H100,), (1,), chunks=(512,)), SERVING.model))
    outcome = search(asked)
    assert outcome.best is not None and outcome.num_recorded == 1000
    cluster = cluster_of(outcome.best.candidate, SERVING)
    whole = run_of(outcome.best.candidate, cluster, growing, 0)(
        outcome.best.rate, 1000, GiveUp(math.inf, math.inf, 0, 1000)
    )
    assert whole.requests.attainment(SLO.ttft_s, SLO.tpot_s) > SLO.attainment - 0.03


def test_a_plan_of_a_trace_that_is_longer_than_what_judges_says_so(
    growing: WorkloadSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(outcome: Outcome) -> list[str]:
        return [one for one in more_lines(outcome, asked.question, "GPU") if "trace" in one]

    monkeypatch.setattr(trace, "MOST_TRACE", 800)
    asked = Search(Question(SLO, effort=EFFORT), SERVING, growing)
    asked.screen(candidates(Space(1, (H100,), (H100,), (1,), chunks=(512,)), SERVING.model))
    outcome = search(asked)
    has, judged = "the trace has {} requests", ": placements and what-ifs are judged by 800 of the first 1,000"
    remedy = "; resample=yes in --workload draws from all over it, 50 in a row, which evens out surges"
    assert told(outcome) == [has.format("1,000") + judged + ", and only the answer by all" + remedy]
    longer = replace(outcome, num_recorded=100_000)
    assert outcome.best is not None and outcome.best.goodput is not None
    most = max(one.num_requests for one in outcome.best.goodput.probes)
    assert told(longer) == [has.format("100,000") + judged + f", and only the answer by the first {most:,}" + remedy]
    longer = replace(longer, num_judged=50_000)
    few = f", of which the longest run took the first {most:,} only"
    assert told(longer) == [has.format("100,000") + few + remedy]
    monkeypatch.undo()
    assert told(search(asked_again(asked))) == []


def asked_again(search: Search) -> Search:
    """The same question."""
    again = Search(search.question, search.serving, search.source)
    again.screen([one for one, _ in search.screened])
    return again


def test_bounds_are_of_the_whole_trace(growing: WorkloadSource) -> None:
    """However its first requests are: nothing above a bound is ever looked at."""
    candidate = Candidate(None, Pool(H100, 1), 512)
    falling = falling_of(growing)
    bounds = [Screen(SERVING, SLO, sample_of(source, 0))(candidate).rate for source in (growing, falling)]
    assert bounds[0] == pytest.approx(bounds[1])


def falling_of(source: WorkloadSource) -> WorkloadSource:
    """The same requests, the last ones first."""
    path = Path(str(source.spec.path)).with_name("falling.jsonl")
    lines = [json.loads(line) for line in Path(str(source.spec.path)).read_text().splitlines()]
    turned = [one | {"timestamp": 100 * i} for i, one in enumerate(reversed(lines))]
    path.write_text("".join(json.dumps(one) + "\n" for one in turned))
    return WorkloadSource(parse_workload_spec(str(path)))


def test_a_rate_that_does_not_last_goes_down() -> None:
    """TPOT of constant lengths creeps up for longer than a run that decides: 93 a second seem to be served."""
    source = WorkloadSource(parse_workload_spec("input=4000,output=200,prefix=2000"))
    candidate = Candidate(None, Pool(H100, 1), 2048)
    run = run_of(candidate, cluster_of(candidate, SERVING), source, 1)
    seen = Attainment(12.5, 0.95, 0.01, 300, Verdict.GOOD)
    found = lasting(run, SLO, Goodput(12.5, 12.5, 13.0, (seen,)), 20.0, EFFORT)
    assert 9.0 < found.rate < 12.5 and found.low <= found.rate < found.high <= 12.5
    assert found.at_rate is not None and found.beyond is not None
    assert max(one.num_requests for one in found.probes) > 1000


def test_what_was_given_up_is_back_when_the_best_does_not_last() -> None:
    races = Races(0.9, Effort(min_requests=20_000))
    best, other = (Candidate(None, Pool(H100, workers), 512) for workers in (2, 1))
    for candidate in (best, other):
        races.add(candidate, Bounds({"bound": 100.0}), 1.0)
    lasts = {best: 50.0, other: 70.0}
    told = []
    for runner in races.heats():
        assert runner is not None
        heat = runner.heat
        told.append((runner.candidate == best, heat.last))
        rate = lasts[runner.candidate] if heat.last or runner.candidate == other else 90.0
        races.enter(runner.candidate, Goodput(rate if rate >= heat.floor else 0.0, 0.0, 100.0, ()), "")
    assert told == [(True, False), (False, False), (True, True), (False, False), (False, True)]


@pytest.mark.parametrize(
    ("colocated", "told"),
    [
        (95.0, "split, colocated, split lasts, colocated lasts"),
        (80.0, "split, colocated, split lasts"),  # so far behind that it plays no part
        (105.0, "split, colocated, colocated lasts, split lasts"),
    ],
)
def test_the_best_of_the_other_kind_is_looked_at_for_long_where_it_is_near(colocated: float, told: str) -> None:
    """Else what one gains by disaggregating is the difference of a number that lasts and one that need not."""
    races = Races(0.9, Effort(min_requests=20_000))
    one, pool = Candidate(None, Pool(H100, 2), 512), Pool(H100, 1)
    goodputs = {Candidate(pool, pool, 512): 100.0, one: colocated}
    for candidate in goodputs:
        races.add(candidate, Bounds({"bound": 110.0}), 1.0)
    heats = []
    for runner in races.heats():
        assert runner is not None
        heats.append(("colocated" if runner.candidate == one else "split") + " lasts" * runner.heat.last)
        rate = goodputs[runner.candidate] * (0.99 if runner.heat.last and runner.candidate == one else 1.0)
        races.enter(runner.candidate, Goodput(rate, 0.0, 110.0, ()), "")
    assert ", ".join(heats) == told


def test_when_the_best_of_the_other_kind_does_not_last_the_races_are_over() -> None:
    """It has lost already: only by how much is told better, and the others of its kind are not simulated for that."""
    races = Races(0.9, Effort(min_requests=20_000))
    pool = Pool(H100, 1)
    split, others = Candidate(pool, pool, 512), [Candidate(None, Pool(H100, 2), 2**n) for n in range(8, 13)]
    for candidate in (split, *others):
        races.add(candidate, Bounds({"bound": 110.0}), 1.0)
    heats = []
    for runner in races.heats():
        assert runner is not None
        heats.append((runner.candidate, runner.heat.last))
        rate = 100.0 if runner.candidate == split else 92.0 if runner.heat.last else 97.0
        races.enter(runner.candidate, Goodput(rate if rate >= runner.heat.floor else 0.0, 0.0, 110.0, ()), "")
    assert heats[-1][0] in others and [last for _, last in heats[-2:]] == [True, True]
    assert sum(last for _, last in heats) == 2


def test_of_a_rate_that_was_asked_for_the_next_one_is_the_answer_when_one_does_not_last() -> None:
    source = WorkloadSource(parse_workload_spec("input=100..500,output=10..50"))
    asked = Search(Question(SLO, 50.0, effort=EFFORT), SERVING, source)
    asked.screen(candidates(Space(3, (H100,), (H100,), (1,), chunks=(512,), split=False, full=False), SERVING.model))
    jobs, sent = asked.jobs(), []
    for job in jobs:
        assert job is not None
        good = job.last is None or job.candidate.gpus > 1
        probe = Attainment(50.0, 0.99 if good else 0.5, 0.001, 1000, Verdict.GOOD if good else Verdict.BAD)
        sent.append((job.candidate.gpus, job.last is not None))

        asked.take(Answer(job.candidate, job.bounds, Goodput(50.0 if good else 0.0, 0.0, 100.0, (probe,)), ""))
    outcome = asked.outcome(complete=True)
    assert sent == [(1, False), (1, True), (2, False), (2, True)]
    assert outcome.best is not None and outcome.best.candidate.gpus == 2 and outcome.sure is outcome.best


def test_a_rate_that_lasts_is_bound_by_what_was_found_beyond_it() -> None:
    """The long run looks at no higher rate: what binds is what the search found."""
    source = WorkloadSource(parse_workload_spec("input=500..4000,output=1..40"))
    asked = Search(Question(SLO, effort=EFFORT), SERVING, source)
    asked.screen(candidates(Space(1, (H100,), (H100,), (1,), chunks=(512,)), SERVING.model))
    best = search(asked).best
    assert best is not None
    found = do_job(Job(best.candidate, best.bounds, 0.0), asked.question, SERVING, source)
    assert found.rate == best.rate and found.reason == best.reason != best.bounds.binding
