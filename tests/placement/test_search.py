"""The search: what it promises of its answer, whatever the cluster."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from placement.hardware.catalogue import gpu_type
from placement.latency.shape import KNOWN_SHAPES
from placement.search import job as jobs
from placement.search import parallel
from placement.search.answer import Answer, Outcome
from placement.search.bounds import Slo
from placement.search.bracket import Attainment, Verdict
from placement.search.build import Serving, cluster_of
from placement.search.candidate import Candidate, Pool
from placement.search.goodput import Effort, Goodput, find_goodput, look
from placement.search.job import do_job, run_of, search, traffic
from placement.search.parallel import Closer, Processes, look_closer, run_search
from placement.search.pareto import front
from placement.search.question import Job, Price, Question
from placement.search.search import Search
from placement.search.space import Affinity, Space, candidates
from placement.search.whatif import AS_ASKED, CHANGES, WhatIf, changed, consequence
from placement.simulator.fast.run import simulate_fast
from placement.simulator.give_up import GiveUp
from placement.workload.source import WorkloadSource
from placement.workload.spec import parse_workload_spec

H100, A100 = gpu_type("h100"), gpu_type("a100")
SERVING = Serving(KNOWN_SHAPES["llama-3.1-8b"], 1024, max_num_seqs=64)
SPEC = parse_workload_spec("input=20..800,output=1..80")
SOURCE = WorkloadSource(SPEC)
EFFORT = Effort(min_requests=300, max_requests=1200, min_seconds=5.0, tolerance=0.03)
SLO = Slo(0.12, 0.012)
NEAR = 1.06  # two tolerances: what two searches may differ by


def asked(gpus: int = 3, *, slo: Slo = SLO, rate: float | None = None, price: Price = Price.GPUS,
          source: WorkloadSource = SOURCE, **space: object) -> Search:  # fmt: skip
    given = {"gpus": gpus, "prefill_gpus": (H100,), "decode_gpus": (H100,), "tps": (1,), "chunks": (512,),
             "full": rate is None} | space  # fmt: skip
    found = Search(Question(slo, rate, price, EFFORT), SERVING, source)
    found.screen(candidates(Space(**given), SERVING.model))  # type: ignore[arg-type]
    return found


def best_rate(outcome: Outcome) -> float:
    return 0.0 if outcome.best is None else outcome.best.rate


def test_the_best_is_as_good_as_every_candidate_simulated_alone() -> None:
    """Nothing that the screen or the early end left out would have won."""
    asked_for = asked(4)
    best = search(asked_for).best
    assert best is not None
    for candidate in candidates(Space(4, (H100,), (H100,), (1,), chunks=(512,)), SERVING.model):
        job = Job(candidate, asked_for._bounds(candidate), 0.0)
        found = do_job(job, asked_for.question, SERVING, SOURCE)
        assert found.goodput is not None
        lasts = do_job(replace(job, last=found.goodput), asked_for.question, SERVING, SOURCE)
        assert lasts.rate <= best.rate * (1 + EFFORT.tolerance)


def test_a_run_is_given_up_only_when_too_many_have_missed() -> None:
    cluster = cluster_of(Candidate(None, Pool(H100, 1), 512), SERVING)
    workload = traffic(SOURCE, 200.0, 600, 0)
    whole = simulate_fast(cluster, workload)
    misses = int((~whole.requests.met(SLO.ttft_s, SLO.tpot_s))[120:].sum())
    assert misses > 200, "the rate is too low for this test"
    ended = simulate_fast(cluster, workload, GiveUp(SLO.ttft_s, SLO.tpot_s, 120, 100))
    assert not ended.complete and ended.num_events < 0.7 * whole.num_events
    kept = simulate_fast(cluster, workload, GiveUp(SLO.ttft_s, SLO.tpot_s, 120, misses))
    few, enough = (GiveUp(SLO.ttft_s, SLO.tpot_s, 120, one) for one in (100, misses))
    assert enough.kept(whole.requests) and not few.kept(whole.requests), "of a whole run the same is said"
    assert kept.complete and np.array_equal(kept.requests.ttft_s, whole.requests.ttft_s)


def closer(processes: int) -> Closer:
    with Processes(SPEC, SOURCE, processes) as pool:
        asked_for = asked(4)
        return look_closer(run_search(asked_for, pool), asked_for.question, asked_for.serving, CHANGES[:4], pool)


def test_one_or_two_processes_give_the_same_answer_for_the_same_seed() -> None:
    """Placement, rate, both ends of its confidence, and what follows from each change, in the same order."""
    alone, together, again = (closer(processes) for processes in (1, 2, 1))
    assert alone.complete and together.complete and alone.outcome.complete
    assert alone.outcome.best is not None
    assert [one.change.name for one in alone.what_if] == [AS_ASKED.name, *(one.name for one in CHANGES[:4])]
    assert alone.what_if[0].rate == alone.outcome.best.rate
    for other in (together, again):
        assert other.outcome.best is not None
        assert (other.outcome.best.candidate, other.outcome.best.rate) == (
            alone.outcome.best.candidate,
            alone.outcome.best.rate,
        )
        assert other.what_if == alone.what_if
        one, two = other.outcome.best.goodput, alone.outcome.best.goodput
        assert one is not None and two is not None and (one.low, one.high) == (two.low, two.high)


def interrupted_after(num: int, function: Callable[..., object]) -> Callable[..., object]:
    done: list[object] = []

    def run(*given: object) -> object:
        if len(done) == num:
            raise KeyboardInterrupt
        done.append(function(*given))
        return done[-1]

    return run


def test_an_interrupted_search_gives_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "do_job", interrupted_after(1, do_job))
    outcome = run_search(asked(4), Processes(SPEC, SOURCE, 1))
    assert not outcome.complete
    assert outcome.best is not None and outcome.best.goodput is not None


def test_an_interrupted_what_if_keeps_the_answer_and_those_that_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for, pool = asked(2), Processes(SPEC, SOURCE, 1)
    outcome = run_search(asked_for, pool)
    monkeypatch.setattr(parallel, "consequence", interrupted_after(2, consequence))
    found = look_closer(outcome, asked_for.question, asked_for.serving, CHANGES, pool)
    assert not found.complete and outcome.best is not None and found.outcome.best is not None
    assert found.outcome.best.rate == outcome.best.rate
    assert [one.change for one in found.what_if] == [AS_ASKED, *CHANGES[:2]]


def test_what_shared_prefixes_save_is_kept_when_prompts_change() -> None:
    """Twice the prompt has twice the prefix; the outputs stay, and the context grows."""
    drawn = WorkloadSource(parse_workload_spec("input=300,output=20,prefix=256")).build(rate=1.0, num_requests=3)
    twice = changed(drawn, WhatIf("", prompts=2.0))
    assert drawn.prefixes is not None and twice.prefixes is not None
    assert twice.prefixes.block_tokens == 2 * drawn.prefixes.block_tokens
    assert twice.prompt_tokens.tolist() == [600] * 3 and twice.output_tokens.tolist() == [20] * 3
    assert changed(drawn, WhatIf("", ttft=2.0)) is drawn
    fixed = WorkloadSource(parse_workload_spec("input=900,output=100"))
    asked_for = asked(1, source=fixed, slo=Slo(1.0, 0.05))
    found = consequence(CHANGES[0], Candidate(None, Pool(H100, 1), 512), asked_for.question, SERVING, fixed)
    assert CHANGES[0].prompts == 2.0 and found.rate > 0.0, "longer than the context that was asked for"


def seen(share: float, half_width: float, verdict: Verdict = Verdict.GOOD) -> Goodput:
    """Of a rate that was asked for."""
    good = verdict is Verdict.GOOD
    return Goodput(150.0 if good else 0.0, 0.0, 200.0, (Attainment(150.0, share, half_width, 600, verdict),))


def test_a_rate_that_is_carried_perhaps_by_chance_makes_the_search_go_on_to_a_surer_placement() -> None:
    asked_for = asked(6, rate=150.0, colocated=True, split=False)
    shares = {1: seen(0.85, 0.06, Verdict.BAD), 2: seen(0.91, 0.03)}
    looked_at = []
    for job in asked_for.jobs():
        workers = job.candidate.decode.workers
        looked_at.append(workers)
        asked_for.take(Answer(job.candidate, job.bounds, shares.get(workers, seen(0.97, 0.01)), ""))
    outcome = asked_for.outcome(complete=True)
    assert outcome.best is not None and outcome.sure is not None
    fewest = min(one for one in looked_at if one > 1)
    assert outcome.best.candidate.decode.workers == fewest
    assert outcome.best.surely_good(0.9) is (fewest > 2)
    assert outcome.sure.candidate.decode.workers == max(3, fewest)
    assert max(looked_at) <= 4, "dearer than what is sure"
    answers = {one.candidate.decode.workers: one for one in outcome.answers}
    assert not answers[1].surely_good(0.9) and (1 not in looked_at or answers[1].maybe_good(0.9))


def test_the_confidence_of_a_rate_is_of_the_attainment_and_of_the_most() -> None:
    asked_for, pool = asked(8, rate=100.0), Processes(SPEC, SOURCE, 1)
    best = look_closer(run_search(asked_for, pool), asked_for.question, asked_for.serving, (), pool).outcome.best
    assert best is not None and best.goodput is not None and best.goodput.most is not None
    goodput, most = best.goodput, best.goodput.most
    assert goodput.rate == 100.0 == goodput.probes[0].rate
    assert goodput.low <= most < goodput.high <= 2 * most
    assert most >= 100.0 and len(goodput.probes) > 3
    assert best.surely_good(SLO.attainment) is (goodput.probes[0].share - goodput.probes[0].half_width >= 0.9)


def test_long_outputs_are_served_at_the_rate_that_a_full_cluster_serves() -> None:
    """Requests stay 13 s: within 10,000 the backlog of 3 workers still grows, at 60/s as at 66/s."""
    serving = Serving(KNOWN_SHAPES["llama-3.1-8b"], 4096)
    source = WorkloadSource(parse_workload_spec("input=100..500,output=200..900"))
    candidate = Candidate(None, Pool(A100, 3, 2), 512)
    run = run_of(candidate, cluster_of(candidate, serving), source, 0)
    verdicts = [look(run, rate, Slo(10.0, 0.03), Effort())[0].verdict for rate in (60.0, 62.0, 66.0)]
    assert verdicts == [Verdict.GOOD, Verdict.GOOD, Verdict.UNSTABLE]


def test_the_most_is_never_less_than_the_rate_that_is_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the bisection is unlucky."""
    asked_for = asked(8, rate=100.0)
    best = search(asked_for).best
    assert best is not None
    monkeypatch.setattr(jobs, "find_goodput", lambda *given: replace(find_goodput(*given), rate=50.0))
    again = jobs.confirmed(best, asked_for.question, SERVING, SOURCE)
    assert again.goodput is not None and again.goodput.most == 100.0
    assert again.goodput.low <= 100.0 < again.goodput.high


def test_a_surer_placement_is_looked_for_up_to_twice_the_price() -> None:
    asked_for = asked(12, rate=150.0, colocated=True, split=False)
    looked_at = []
    for one in asked_for.jobs():
        looked_at.append(one.candidate.decode.workers)
        asked_for.take(Answer(one.candidate, one.bounds, seen(0.91, 0.03), ""))  # nobody is ever sure
    outcome = asked_for.outcome(complete=True)
    assert outcome.best is not None and outcome.sure is None
    assert looked_at[0] < max(looked_at) <= 2 * looked_at[0] < 12
    assert any("more than 2 times the price of colocated" in one.reason for one in outcome.answers)


def test_the_least_for_a_rate_carries_it_and_less_does_not() -> None:
    """Against every cheaper placement, simulated."""
    enough = search(asked(8, rate=150.0)).best
    assert enough is not None and enough.goodput is not None and enough.goodput.at_rate is not None
    assert enough.goodput.at_rate.requests.attainment(SLO.ttft_s, SLO.tpot_s) >= 0.88
    assert enough.candidate.gpus > 1
    for candidate in candidates(
        Space(enough.candidate.gpus - 1, (H100,), (H100,), (1,), chunks=(512,), full=False), SERVING.model
    ):
        run = run_of(candidate, cluster_of(candidate, SERVING), SOURCE, 0)
        assert look(run, 150.0, SLO, EFFORT)[0].verdict is not Verdict.GOOD, str(candidate)


def test_price_decides_between_types() -> None:
    """An A100 has 61 % of an H100's bytes per second; here at a fifth of its price."""
    cheap = replace(A100, name="cheap", cost_per_hour=1.0)
    types = {"prefill_gpus": (H100, cheap), "decode_gpus": (H100, cheap), "slo": Slo(0.5, 0.05),
             "source": WorkloadSource(parse_workload_spec("input=50,output=300"))}  # fmt: skip
    by_gpus, by_cost = (search(asked(6, rate=60.0, price=price, **types)).best for price in (Price.GPUS, Price.COST))  # type: ignore[arg-type]
    assert by_gpus is not None and by_cost is not None
    assert by_gpus.candidate.gpus <= by_cost.candidate.gpus
    assert by_cost.candidate.cost_per_hour < by_gpus.candidate.cost_per_hour
    assert by_cost.candidate.decode.gpu is cheap


def test_replicas_serve_as_much_as_one_of_them_does_with_its_share() -> None:
    outcome = search(asked(4, affinity=Affinity.LOW, decode_gpus=(replace(H100, gpus_per_node=2),),
                           prefill_gpus=(replace(H100, gpus_per_node=2),), colocated=False))  # fmt: skip
    assert outcome.best is not None and outcome.best.candidate.replicas == 2
    one = replace(outcome.best.candidate, replicas=1)
    alone = do_job(Job(one, replace(outcome.best.bounds), 0.0), asked().question, SERVING, SOURCE)
    assert outcome.best.rate == pytest.approx(2 * alone.rate, rel=0.08)


def test_the_front_holds_what_nothing_cheaper_beats() -> None:
    outcome = search(asked(4, full=False))
    best = front(outcome.answers, Price.GPUS)
    assert [one.candidate.gpus for one in best] == sorted({one.candidate.gpus for one in best})
    assert all(a.rate < b.rate for a, b in itertools.pairwise(best))
    assert best[-1].rate == best_rate(outcome)


def test_the_binding_constraint_is_read_off_the_simulation() -> None:
    slow_link = replace(SERVING, kv_bytes=None)
    found = Search(Question(Slo(0.12, 5.0), None, Price.GPUS, EFFORT), slow_link, SOURCE)
    found.screen([Candidate(Pool(H100, 1), Pool(H100, 3), 512)])
    best = search(found).best
    assert best is not None and best.reason.startswith("TTFT")
    assert best.used is not None and best.used.prefill > 0.5 > best.used.decode_memory
