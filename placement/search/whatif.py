"""How far an answer carries: the same placement under other prompts, outputs, targets."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from placement.search.binding import binding_of
from placement.search.bounds import Screen, Slo
from placement.search.build import DoesNotFit, Serving, cluster_of
from placement.search.candidate import Candidate
from placement.search.goodput import find_goodput
from placement.search.job import Simulated, traffic
from placement.search.search import Question
from placement.simulator.give_up import GiveUp
from placement.simulator.results import SimulationResult
from placement.workload.source import WorkloadSource
from placement.workload.workload import Workload


@dataclass(frozen=True, slots=True)
class WhatIf:
    """One change; factors of what the question says."""

    name: str
    prompts: float = 1.0
    outputs: float = 1.0
    ttft: float = 1.0
    tpot: float = 1.0
    network: float = 1.0  # of the link's bytes per second


CHANGES = (
    WhatIf("as asked"),
    WhatIf("prompts double", prompts=2.0),
    WhatIf("prompts halve", prompts=0.5),
    WhatIf("outputs double", outputs=2.0),
    WhatIf("outputs halve", outputs=0.5),
    WhatIf("TTFT target halves", ttft=0.5),
    WhatIf("TTFT target doubles", ttft=2.0),
    WhatIf("TPOT target halves", tpot=0.5),
    WhatIf("TPOT target doubles", tpot=2.0),
    WhatIf("a tenth of the link", network=0.1),
)


@dataclass(frozen=True, slots=True)
class Consequence:
    """What the placement serves then."""

    change: WhatIf
    rate: float
    binding: str


def changed(workload: Workload, change: WhatIf, most_tokens: int) -> Workload:
    """Lengths scaled, at least one token each, prompt and output together within the context."""
    prompt = np.clip(np.rint(workload.prompt_tokens * change.prompts), 1, most_tokens - 1).astype(np.int64)
    output = np.rint(workload.output_tokens * change.outputs).astype(np.int64)
    return replace(
        workload,
        prompt_tokens=prompt,
        output_tokens=np.clip(output, 1, most_tokens - prompt),
        prefixes=None,
        texts=None,
    )


def consequence(
    change: WhatIf, candidate: Candidate, question: Question, serving: Serving, source: WorkloadSource
) -> Consequence:
    """Steady goodput of one placement after one change."""
    slo = Slo(question.slo.ttft_s * change.ttft, question.slo.tpot_s * change.tpot, question.slo.attainment)
    most = serving.max_model_len
    sample = changed(source.build(rate=1.0, num_requests=4000, seed=question.seed), change, most)
    try:
        cluster = cluster_of(candidate, serving)
    except DoesNotFit as error:
        return Consequence(change, 0.0, str(error))
    link = replace(cluster.link, bytes_per_s=cluster.link.bytes_per_s * change.network)
    serving, cluster = replace(serving, link=link), replace(cluster, link=link)
    bounds = Screen(serving, slo, sample)(candidate)
    simulated = Simulated(cluster)

    def run(rate: float, num_requests: int, give_up: GiveUp) -> SimulationResult:
        workload = traffic(source, rate / candidate.replicas, num_requests, question.seed)
        return simulated.run(changed(workload, change, most), give_up)

    goodput = find_goodput(run, slo, bounds.rate, question.effort)
    why = binding_of(goodput.beyond, slo, bounds.binding, colocated=candidate.prefill is None)
    return Consequence(change, goodput.rate, why)
