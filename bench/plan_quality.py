"""Which placement is picked by 300 requests, which by steady goodput, and what both serve in the long run.

    python -m bench.plan_quality

OPT-13B and OPT-66B on 4 nodes of 8 A100s, with DistServe's coefficients and its 300 requests. One search is DistServe's
(simulated by its rules until 300 requests are through); the other is ours over the same placements: our schedulers, KV
blocks and links under the same step times, until the goodput is steady. Then every placement that either search liked
is simulated anew, with other requests and four times as many; and both picks by DistServe's own rules with 20,000.
Needs ../shared/data; says so and does nothing without.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from placement.compat.distserve import Affinity, Configuration, ModelProfile, enumerate_configurations, read_profile
from placement.compat.distserve.goodput import Bisection, best_of
from placement.compat.distserve.goodput import Slo as CompatSlo
from placement.compat.distserve.instance import Backend
from placement.compat.distserve.search import goodput as compat_goodput
from placement.compat.distserve.search import search as search_compat
from placement.compat.errors import ProfileError
from placement.compat.requests import Requests
from placement.hardware.catalogue import GpuType, gpu_type
from placement.latency.imports import distserve_steps
from placement.latency.shape import KNOWN_SHAPES
from placement.search.answer import Answer
from placement.search.bounds import Slo
from placement.search.build import DoesNotFit, Serving, cluster_of
from placement.search.candidate import Candidate, Pool
from placement.search.goodput import Effort, find_goodput
from placement.search.job import run_of, search, traffic
from placement.search.question import Question
from placement.search.search import Search
from placement.simulator.cluster import Delays, LinkSpec, StepTimes
from placement.workload.source import WorkloadSource
from placement.workload.spec import parse_workload_spec

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NODES, GPUS = 4, 8
CASES = {
    "opt-13b, TTFT 0.25 s, TPOT 0.1 s": ("opt-13b", Slo(0.25, 0.1)),
    "opt-66b, TTFT 2.5 s, TPOT 0.15 s": ("opt-66b", Slo(2.5, 0.15)),
    "opt-66b, TTFT 0.6 s, TPOT 0.1 s": ("opt-66b", Slo(0.6, 0.1)),
}
_MANY = 20_000
_NEAR = 0.9  # of the best: these are looked at again
_LONG = Effort(min_requests=2400, max_requests=38_400, min_seconds=240.0, tolerance=0.01)


@dataclass(frozen=True, slots=True)
class DistServeSteps:
    """Its coefficients as our step times."""

    profile: ModelProfile

    def __call__(self, gpu: GpuType, tp: int, pp: int) -> StepTimes:
        try:
            return distserve_steps(self.profile, tp, pp)
        except ProfileError as error:
            raise DoesNotFit(error.message) from None


@dataclass(frozen=True, slots=True)
class Case:
    """One model and its targets, over the same placements and requests for both searches."""

    profile: ModelProfile
    slo: Slo
    rows: list[tuple[float, int, int]]  # arrivals at one per second
    source: WorkloadSource
    nodes: int = NODES
    gpus: int = GPUS  # of each

    @property
    def serving(self) -> Serving:
        """KV memory as DistServe takes it of an A100, less a little: 90 % of it, weights taken off."""
        shape = KNOWN_SHAPES[self.profile.name]
        link, delays = LinkSpec(gpu_type("a100").peer_bytes_per_s), Delays()
        return Serving(shape, 2048, link=link, delays=delays, step_times=DistServeSteps(self.profile))

    def configurations(self) -> list[Configuration]:
        return enumerate_configurations(self.profile, "distserve", self.nodes, self.gpus, Affinity.LOW)

    def compatible(self) -> tuple[Configuration, float]:
        """Its pick, and the requests per second and GPU that it promises."""
        requests = Requests.of(self.rows)
        targets = CompatSlo(self.slo.ttft_s, self.slo.tpot_s)
        table = search_compat(
            self.profile, Backend.DISTSERVE, self.configurations(), requests, targets, Bisection(40.0, 0.05)
        )
        best = best_of(table)
        assert best is not None
        return best.configuration, best.per_gpu

    def by_their_rules(self, one: Configuration) -> float:
        """Requests per second and GPU by DistServe's own simulator, once 20,000 requests have to be through."""
        drawn = traffic(self.source, 1.0, _MANY, 4321)
        columns = (drawn.arrival_s.tolist(), drawn.prompt_tokens.tolist(), drawn.output_tokens.tolist())
        targets = CompatSlo(self.slo.ttft_s, self.slo.tpot_s)
        requests = Requests.of(list(zip(*columns, strict=True)))
        return compat_goodput(self.profile, Backend.DISTSERVE, one, requests, targets, Bisection(40.0, 0.01))

    def steady(self) -> Search:
        """Our search, screened; nothing simulated yet."""
        found = Search(Question(self.slo, per_gpu=True), self.serving, self.source)
        found.screen(placement(one) for one in self.configurations())
        return found

    def again(self, candidate: Candidate) -> float:
        """Steady goodput per GPU, by other requests, more of them."""
        run = run_of(candidate, cluster_of(candidate, self.serving), self.source, 4321)
        bounds = Search(Question(self.slo), self.serving, self.source)
        bounds.screen([candidate])
        upper = max([one.rate for _, one in bounds.screened], default=0.0)
        return find_goodput(run, self.slo, upper, _LONG).rate / candidate.gpus


def case_of(model: str, slo: Slo, directory: Path) -> Case:
    """With DistServe's 300 requests, whose lengths our source draws from."""
    given = json.loads((DATA / "golden-simdistserve-runs.json").read_text(encoding="utf-8"))["cases"][0]["requests"]
    rows = [(row[0] / 1000 * 4, row[1], row[2]) for row in given]
    path = directory / "requests.jsonl"
    lines = [json.dumps({"arrival_s": a, "prompt_tokens": p, "output_tokens": o}) for a, p, o in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = WorkloadSource(parse_workload_spec(f"{path},arrivals=poisson,resample=yes,max-total=2047"))
    return Case(read_profile(DATA / "distserve-a100-profile.json", model), slo, rows, source)


def placement(one: Configuration) -> Candidate:
    """DistServe's configuration as ours; segments on several nodes are more stages."""
    gpu = replace(gpu_type("a100"), gpus_per_node=GPUS)
    prefill, decode = one.whole(one.prefill), one.whole(one.decode)
    return Candidate(Pool(gpu, 1, prefill.tp, prefill.pp), Pool(gpu, 1, decode.tp, decode.pp), 2048)


def compare(name: str, case: Case) -> None:
    """Both picks, and what they serve."""
    before = time.process_time()
    theirs, promised = case.compatible()
    middle = time.process_time()
    outcome = search(case.steady())
    after = time.process_time()
    assert outcome.best is not None, "nothing serves"
    ours, best = outcome.best.candidate, per_gpu(outcome.best)
    liked = {one.candidate for one in outcome.answers if per_gpu(one) >= _NEAR * best} | {ours, placement(theirs)}
    steady = {candidate: case.again(candidate) for candidate in liked}
    most = max(steady.values())
    print(f"{name}: {len(case.configurations())} placements on {NODES}x{GPUS} GPUs, requests/s per GPU")
    chosen = next(one for one in case.configurations() if placement(one) == ours)
    for who, one, said in (("300 requests", theirs, promised), ("steady", chosen, best)):
        pick = placement(one)
        share, by_theirs = steady[pick] / most, case.by_their_rules(one)
        print(f"  {who:>12}: {pick!s:<58} says {said:.2f}, serves {steady[pick]:.2f} = {share:.0%}; "
              f"by DistServe's rules {by_theirs:.2f}")  # fmt: skip
    print(
        f"  best of the {len(liked)} looked at again: {most:.2f}; CPU s: {middle - before:.2f} and {after - middle:.2f}"
    )


def per_gpu(answer: Answer) -> float:
    return answer.rate / answer.candidate.gpus


def main() -> int:
    """A case after the other."""
    if not DATA.is_dir():
        print(f"skipped: the reference data is not at {DATA}")
        return 0
    with tempfile.TemporaryDirectory() as directory:
        for name, (model, slo) in CASES.items():
            compare(name, case_of(model, slo, Path(directory)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
