"""Large loads: a part is searched, repeated, and the whole looked at a few times."""

from __future__ import annotations

from dataclasses import replace

from placement.hardware.catalogue import gpu_type
from placement.latency.shape import KNOWN_SHAPES
from placement.search.build import Serving, cluster_of
from placement.search.candidate import Candidate, Pool
from placement.search.job import traffic
from placement.simulator.fast.run import unsupported
from placement.workload.source import WorkloadSource
from placement.workload.spec import parse_workload_spec

H100 = gpu_type("h100")
SERVING = Serving(KNOWN_SHAPES["llama-3.1-8b"], 1024, max_num_seqs=64)


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
