"""Large loads: a part is searched, repeated, and the whole looked at a few times."""

from __future__ import annotations

from dataclasses import replace

from placement.hardware.catalogue import gpu_type
from placement.latency.shape import KNOWN_SHAPES
from placement.search.answer import Outcome
from placement.search.bounds import Slo
from placement.search.build import Serving, cluster_of
from placement.search.candidate import Candidate, Pool
from placement.search.goodput import Effort, look
from placement.search.job import run_of, search, traffic
from placement.search.parallel import Processes
from placement.search.question import Question
from placement.search.scale import part_of, repeated, run_scaled
from placement.search.search import Search
from placement.search.space import Space, candidates
from placement.simulator.fast.run import unsupported
from placement.workload.source import WorkloadSource
from placement.workload.spec import parse_workload_spec

H100 = gpu_type("h100")
SERVING = Serving(KNOWN_SHAPES["llama-3.1-8b"], 1024, max_num_seqs=64)
SOURCE = WorkloadSource(parse_workload_spec("input=20..800,output=1..80"))
SPEC = SOURCE.spec
EFFORT = Effort(min_requests=300, max_requests=1200, min_seconds=5.0, tolerance=0.03)
SLO = Slo(0.12, 0.012)
SPACE = Space(4, (H100,), (H100,), (1,), chunks=(512,), full=False)


def test_a_long_run_draws_nothing_longer_than_the_context_and_stays_compiled() -> None:
    """The context is taken of 20,000 requests; among 60,000 are longer ones."""
    source = WorkloadSource(parse_workload_spec("azure-conv"))
    drawn = source.build(rate=1.0, num_requests=20_000, seed=0)
    context = int(drawn.prompt_tokens.max()) + 1
    cluster = cluster_of(Candidate(None, Pool(H100, 1), 512), replace(SERVING, max_model_len=context))
    long = traffic(source, 100.0, 60_000, 0)
    cut = traffic(source, 100.0, 60_000, 0, context)
    assert unsupported(cluster, long) and not unsupported(cluster, cut)
    assert len(cut) == len(long) and 0 < (cut.prompt_tokens != long.prompt_tokens).sum() < 60


def whole(rate: float | None, space: Space, copies: int) -> tuple[Outcome, Question]:
    """Of so many parts, the part searched for its share."""
    question = Question(SLO, rate, effort=EFFORT)
    share = replace(question, rate=None if rate is None else rate / copies)
    search_for = Search(share, SERVING, SOURCE)
    search_for.screen(candidates(part_of(space, copies), SERVING.model))
    with Processes(SPEC, SOURCE, 1) as processes:
        return run_scaled(search(search_for), copies, question, space, SERVING, processes), question


def test_the_whole_carries_the_rate_in_simulation_and_takes_no_more_than_its_parts() -> None:
    outcome, _ = whole(960.0, replace(SPACE, gpus=256), 16)
    best, scaled = outcome.best, outcome.scaled
    assert best is not None and scaled is not None and scaled.part.best is not None
    part = scaled.part.sure or scaled.part.best
    assert best.candidate.gpus <= 16 * part.candidate.gpus
    assert scaled.num_whole > 0 and scaled.num_joined > 0
    assert best.candidate.replicas == 1, "a larger cluster does no worse than many small ones"
    run = run_of(best.candidate, cluster_of(best.candidate, SERVING), SOURCE, 99)
    assert look(run, 960.0, SLO, EFFORT)[0].share > 0.88, "other requests"
    assert any(one.candidate == replace(part.candidate, replicas=16) for one in outcome.answers)


def test_a_scaled_search_finds_what_the_whole_search_finds() -> None:
    """Where both can be done; to within the steps in which the whole is shrunk."""
    space = replace(SPACE, gpus=32)
    outcome, question = whole(1400.0, space, 8)
    exact = Search(question, SERVING, SOURCE)
    exact.screen(candidates(space, SERVING.model))
    least = search(exact).sure
    assert outcome.best is not None and least is not None
    assert least.candidate.gpus <= outcome.best.candidate.gpus <= 1.1 * least.candidate.gpus


def test_the_most_of_many_gpus_uses_all_that_the_budget_allows() -> None:
    space = replace(SPACE, gpus=35, full=True)
    outcome, _ = whole(None, space, 8)
    best, scaled = outcome.best, outcome.scaled
    assert best is not None and scaled is not None and scaled.part.best is not None
    assert space.allows(best.candidate) and best.candidate.gpus >= 32
    assert best.rate >= 0.97 * 8 * scaled.part.best.rate and best.goodput is not None
    assert best.goodput.low <= best.rate < best.goodput.high


def test_a_repeated_part_is_what_its_run_said_so_many_times() -> None:
    outcome, _ = whole(None, SPACE, 1)
    assert outcome.scaled is not None and outcome.scaled.part.best is not None
    part = outcome.scaled.part.best
    many = repeated(part, 3)
    assert many.rate == 3 * part.rate and many.bounds.rate == 3 * part.bounds.rate
    assert many.candidate.gpus == 3 * part.candidate.gpus and str(many.candidate).startswith("3 x (")
