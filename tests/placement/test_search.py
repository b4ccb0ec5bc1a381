"""The search: what it promises of its answer, whatever the cluster."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from placement.hardware.catalogue import gpu_type
from placement.latency.shape import KNOWN_SHAPES
from placement.search import parallel
from placement.search.bounds import Slo
from placement.search.build import Serving, cluster_of
from placement.search.candidate import Candidate, Pool
from placement.search.goodput import Effort, Verdict, look
from placement.search.job import Simulated, do_job, run_of, search, traffic
from placement.search.parallel import run_search
from placement.search.pareto import front
from placement.search.search import Answer, Job, Outcome, Price, Question, Search
from placement.search.space import Affinity, Space, candidates
from placement.simulator.fast.run import simulate_fast
from placement.simulator.give_up import GiveUp
from placement.simulator.requests import Outcome as End
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


def test_more_gpus_never_lower_the_goodput_of_the_best_plan() -> None:
    rates = [best_rate(search(asked(gpus))) for gpus in (1, 2, 3, 5)]
    assert rates[0] > 0.0
    assert all(more * NEAR >= fewer for fewer, more in itertools.pairwise(rates)), rates
    assert rates[-1] > 2 * rates[0]


def test_a_tighter_target_never_raises_the_goodput() -> None:
    for tight, loose in (
        (replace(SLO, ttft_s=0.06), SLO), (replace(SLO, tpot_s=0.008), SLO), (replace(SLO, attainment=0.97), SLO),
    ):  # fmt: skip
        assert best_rate(search(asked(slo=tight))) <= NEAR * best_rate(search(asked(slo=loose)))
    assert best_rate(search(asked(slo=Slo(1e-4, 1.0)))) == 0.0


def test_the_best_is_as_good_as_every_candidate_simulated_alone() -> None:
    """Nothing that the screen or the early end left out would have won."""
    asked_for = asked(4)
    best = search(asked_for).best
    assert best is not None
    for candidate in candidates(Space(4, (H100,), (H100,), (1,), chunks=(512,)), SERVING.model):
        job = Job(candidate, asked_for._bounds(candidate), 0.0)
        assert do_job(job, asked_for.question, SERVING, SOURCE).rate <= best.rate


def test_requests_that_are_equal_may_change_places() -> None:
    """Their lengths are all that the simulator knows of them."""
    cluster = cluster_of(Candidate(Pool(H100, 1), Pool(H100, 1), 512), SERVING)
    workload = traffic(SOURCE, 20.0, 200, 0)
    twins = replace(
        workload,
        prompt_tokens=np.repeat(workload.prompt_tokens[::2], 2),
        output_tokens=np.repeat(workload.output_tokens[::2], 2),
        arrival_s=np.repeat(workload.arrival_s[::2], 2),
    )
    swapped = twins.take(np.arange(200).reshape(-1, 2)[:, ::-1].ravel())
    one, other = Simulated(cluster)(twins), Simulated(cluster)(swapped)
    for name in ("ttft_s", "tpot_s", "e2e_s", "outcome"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("seed", range(6))
def test_requests_tokens_and_blocks_are_conserved(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prefill = Pool(H100, int(rng.integers(1, 4))) if rng.random() < 0.7 else None
    candidate = Candidate(prefill, Pool(H100, int(rng.integers(1, 3))), 256, int(rng.choice([0, 100])))
    serving = replace(SERVING, kv_bytes=float(rng.choice([3e8, 5e9])))
    workload = traffic(SOURCE, float(rng.uniform(5, 120)), 300, seed)
    result = simulate_fast(cluster_of(candidate, serving), workload)  # raises if a request or a block is left over
    rows = result.requests
    assert (rows.outcome == End.FINISHED).all()
    assert np.array_equal(rows.output_tokens, workload.output_tokens)
    counts = result.workers.values()
    # A prompt's last single token is a step like that of a decode, so only the sum is fixed.
    computed = sum(one.prefill_tokens + one.decode_tokens for one in counts)
    needed = workload.prompt_tokens.sum() + (workload.output_tokens - 1).sum()
    assert computed >= needed
    if max(one.peak_blocks for one in counts) < 0.9 * serving.blocks(candidate.decode):  # nobody was preempted
        assert computed == needed
    phases = rows.queue_s + rows.prefill_s + rows.transfer_s + rows.decode_wait_s + rows.decode_s
    assert np.allclose(phases, rows.e2e_s)
    if prefill is not None:
        sent = (workload.output_tokens > 1) & (workload.prompt_tokens > candidate.local_prefill_tokens)
        blocks = -(-workload.prompt_tokens[sent] // serving.block_size)
        assert result.moved_bytes >= 0.999 * blocks.sum() * serving.block_bytes


def test_a_run_is_given_up_only_when_too_many_have_missed() -> None:
    cluster = cluster_of(Candidate(None, Pool(H100, 1), 512), SERVING)
    workload = traffic(SOURCE, 200.0, 600, 0)
    whole = simulate_fast(cluster, workload)
    misses = int((~whole.requests.met(SLO.ttft_s, SLO.tpot_s))[120:].sum())
    assert misses > 200, "the rate is too low for this test"
    ended = simulate_fast(cluster, workload, GiveUp(SLO.ttft_s, SLO.tpot_s, 120, 100))
    assert not ended.complete and ended.num_events < 0.7 * whole.num_events
    kept = simulate_fast(cluster, workload, GiveUp(SLO.ttft_s, SLO.tpot_s, 120, misses))
    assert kept.complete and np.array_equal(kept.requests.ttft_s, whole.requests.ttft_s)


def test_one_or_two_processes_give_the_same_answer_for_the_same_seed() -> None:
    alone, together = (run_search(asked(4), SPEC, processes) for processes in (1, 2))
    again = run_search(asked(4), SPEC, 1)
    assert alone.complete and together.complete
    assert alone.best is not None and together.best is not None and again.best is not None
    for other in (together.best, again.best):
        assert (other.candidate, other.rate) == (alone.best.candidate, alone.best.rate)
        assert other.goodput is not None and alone.best.goodput is not None
        assert (other.goodput.low, other.goodput.high) == (alone.best.goodput.low, alone.best.goodput.high)


def test_an_interrupted_search_gives_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Answer] = []

    def interrupted(job: Job, *rest: object) -> Answer:
        if done:
            raise KeyboardInterrupt
        done.append(do_job(job, *rest))  # type: ignore[arg-type]
        return done[0]

    monkeypatch.setattr(parallel, "do_job", interrupted)
    outcome = run_search(asked(4), SPEC, 1)
    assert not outcome.complete
    assert outcome.best is not None and outcome.best.candidate == done[0].candidate


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
