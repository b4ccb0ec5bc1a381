"""Bounds are bounds: simulation never serves more than they allow."""

from __future__ import annotations

import numpy as np
import pytest

from placement.hardware.catalogue import gpu_type
from placement.latency.shape import KNOWN_SHAPES
from placement.search.bounds import Screen, Slo
from placement.search.build import DoesNotFit, Serving, cluster_of, link_of
from placement.search.candidate import Candidate, Pool
from placement.search.goodput import Effort, find_goodput
from placement.search.job import run_of
from placement.search.lengths import LengthStats
from placement.simulator.cluster import LinearSteps, LinkSpec
from placement.workload.source import WorkloadSource
from placement.workload.spec import parse_workload_spec
from placement.workload.workload import Prefixes, Workload
from scheduling.latency import LatencyCoefficients, LatencyModel

SMALL = KNOWN_SHAPES["llama-3.1-8b"]
H100, A100 = gpu_type("h100"), gpu_type("a100")
EFFORT = Effort(min_requests=400, max_requests=1600, min_seconds=20.0)
ALLOWED = 1.03  # of a bound: what 1,600 requests can tell


class Same:
    """One set of linear step times for every pool."""

    def __init__(self, *numbers: float) -> None:
        self.steps = LinearSteps(LatencyModel(LatencyCoefficients(*numbers)))

    def __call__(self, gpu: object, tp: int, pp: int) -> LinearSteps:
        return self.steps


def goodput(candidate: Candidate, serving: Serving, slo: Slo, source: WorkloadSource, upper: float) -> float:
    run = run_of(candidate, cluster_of(candidate, serving), source, 0)
    return find_goodput(run, slo, upper, EFFORT).rate


def random_case(seed: int) -> tuple[Candidate, Serving, Slo, WorkloadSource]:
    rng = np.random.default_rng(seed)
    prompt, output = int(rng.choice([60, 400, 1500])), int(rng.choice([1, 2, 30, 150]))
    kind = rng.choice(["uniform", "fixed"])
    words = f"input={prompt},output={output}" if kind == "fixed" else f"input=1..{prompt},output=1..{output}"
    source = WorkloadSource(parse_workload_spec(words))
    gpu = H100 if rng.random() < 0.5 else A100
    decode = Pool(gpu, int(rng.integers(1, 3)), pp=int(rng.choice([1, 1, 2])))
    prefill = None if rng.random() < 0.4 else Pool(gpu, int(rng.integers(1, 3)), pp=int(rng.choice([1, 1, 2])))
    local = int(rng.choice([0, 0, 200])) if prefill is not None else 0
    candidate = Candidate(prefill, decode, int(rng.choice([128, 512, 2048])), local)
    serving = Serving(
        SMALL, 2048, max_num_seqs=int(rng.choice([8, 64])),
        step_times=None if rng.random() < 0.5 else Same(2e-3, 4e-5, 1e-4, 2e-8),
        kv_bytes=None if rng.random() < 0.5 else 4e9, link=None if rng.random() < 0.5 else LinkSpec(2e9),
    )  # fmt: skip
    return candidate, serving, Slo(float(rng.choice([0.3, 2.0])), float(rng.choice([0.01, 0.05])), 0.9), source


def test_no_simulation_serves_more_than_its_bound() -> None:
    served = 0
    for seed in range(24):
        candidate, serving, slo, source = random_case(seed)
        bounds = Screen(serving, slo, source.build(rate=1.0, num_requests=4000, seed=0))(candidate)
        upper = 2.0 * (bounds.rate or 1.0)
        rate = goodput(candidate, serving, slo, source, upper)
        assert rate <= ALLOWED * bounds.rate, (seed, str(candidate), bounds.by_resource, rate)
        served += rate > 0.0
    assert served > 8, "most cases say nothing"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("prefill compute", {"prefill": 1, "decode": 6}),
        ("decode memory", {"kv_bytes": 1e9, "tpot": 5.0}),
        ("decode tpot", {"tpot": 0.008}),
        ("link", {"link": LinkSpec(1e8)}),
    ],
)
def test_the_smallest_bound_names_what_binds(name: str, changes: dict[str, object]) -> None:
    prefill, decode = int(str(changes.get("prefill", 6))), int(str(changes.get("decode", 1)))
    kv_bytes, link = changes.get("kv_bytes"), changes.get("link")
    assert kv_bytes is None or isinstance(kv_bytes, float)
    assert link is None or isinstance(link, LinkSpec)
    serving = Serving(SMALL, 1024, kv_bytes=kv_bytes, link=link)
    source = WorkloadSource(parse_workload_spec("input=500,output=200"))
    slo = Slo(1.0, float(str(changes.get("tpot", 0.05))))
    found = Screen(serving, slo, source.build(rate=1.0, num_requests=100))(
        Candidate(Pool(H100, prefill), Pool(H100, decode), 2048)
    )
    assert found.binding == name
    assert found.rate == found.by_resource[name] > 0.0


def test_a_prompt_that_is_late_on_an_idle_worker_allows_nothing() -> None:
    source = WorkloadSource(parse_workload_spec("input=1900,output=2"))
    sample = source.build(rate=1.0, num_requests=50)
    found = Screen(Serving(SMALL, 2048), Slo(1e-3, 1.0), sample)(Candidate(Pool(H100, 2), Pool(H100, 2), 512))
    assert (found.rate, found.binding) == (0.0, "ttft of one prompt")


def test_prefixes_that_are_cached_are_not_computed() -> None:
    """Two requests of 100 tokens whose first 64 are the same: the second computes 36."""
    prefixes = Prefixes(np.array([7, 7]), np.array([0, 1, 2]), 64)
    workload = Workload.of(np.array([100, 100]), np.array([5, 5]), np.zeros(2), prefixes)
    assert LengthStats.of(workload, 0.9).computed_mean == 100
    cached = LengthStats.of(workload, 0.9, prefix_caching=True)
    assert cached.computed_mean == (100 + 36) / 2
    assert cached.pairs_mean == (100**2 / 2 + (100**2 - 64**2) / 2) / 2


def test_lanes_of_a_pipeline_share_its_ports() -> None:
    two_stages = Candidate(Pool(H100, 1, pp=2), Pool(A100, 1, pp=2), 512)
    one_stage = Candidate(Pool(H100, 1), Pool(A100, 1), 512)
    serving = Serving(SMALL, 1024)
    assert link_of(two_stages, serving).bytes_per_s == link_of(one_stage, serving).bytes_per_s


def test_what_does_not_fit_says_how_much_is_missing() -> None:
    big = Serving(KNOWN_SHAPES["llama-3.1-70b"], 4096)
    sample = WorkloadSource(parse_workload_spec("input=100,output=10")).build(rate=1.0, num_requests=10)
    with pytest.raises(DoesNotFit, match=r"1xh100: 0 bytes of KV a lane, one request of 4,096 tokens needs"):
        Screen(big, Slo(1.0, 1.0), sample)(Candidate(None, Pool(H100, 1), 512))
