"""How far an answer carries: the same placement under other prompts, outputs, targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from placement.search.answer import Answer
from placement.search.binding import binding_of
from placement.search.bounds import Screen, Slo
from placement.search.build import DoesNotFit, Serving, cluster_of
from placement.search.candidate import Candidate
from placement.search.goodput import find_goodput
from placement.search.job import Simulated, deciding, traffic
from placement.search.question import Question
from placement.search.trace import sample_of
from placement.simulator.give_up import GiveUp
from placement.simulator.results import SimulationResult
from placement.workload.source import WorkloadSource
from placement.workload.workload import Ints, Workload


@dataclass(frozen=True, slots=True)
class WhatIf:
    """One change; factors of what the question says."""

    name: str
    prompts: float = 1.0
    outputs: float = 1.0
    ttft: float = 1.0
    tpot: float = 1.0
    network: float = 1.0  # of the link's bytes per second


AS_ASKED = WhatIf("as asked")
CHANGES = (
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


def as_asked(answer: Answer) -> Consequence:
    """What it serves as things are."""
    most = None if answer.goodput is None else answer.goodput.most
    return Consequence(AS_ASKED, answer.rate if most is None else most, answer.reason)


def consistent(found: Sequence[Consequence]) -> tuple[Consequence, ...]:
    """What is harder in every respect never carries more than is carried as asked, what is easier never less.

    Each rate is a search of its own, as exact as its runs are long: some per cent.
    """
    asked = next((one for one in found if one.change == AS_ASKED), None)
    if asked is None:
        return tuple(found)
    told: list[Consequence] = []
    for one in found:
        wrong = one.rate > asked.rate if _is_harder(one.change) else one.rate < asked.rate and _is_easier(one.change)
        told.append(replace(one, rate=asked.rate, binding=asked.binding) if wrong else one)
    return tuple(told)


def _is_harder(change: WhatIf) -> bool:
    """Longer requests, tighter targets, a slower link, or as asked."""
    return min(change.prompts, change.outputs) >= 1.0 >= max(change.ttft, change.tpot, change.network)


def _is_easier(change: WhatIf) -> bool:
    return max(change.prompts, change.outputs) <= 1.0 <= min(change.ttft, change.tpot, change.network)


def changed(workload: Workload, change: WhatIf) -> Workload:
    """Lengths scaled, at least one token each; what prompts share grows and shrinks with them."""
    if change.prompts == change.outputs == 1.0:
        return workload
    prefixes = workload.prefixes
    if prefixes is not None:
        prefixes = replace(prefixes, block_tokens=max(1, round(prefixes.block_tokens * change.prompts)))
    return replace(
        workload,
        prompt_tokens=_scaled(workload.prompt_tokens, change.prompts),
        output_tokens=_scaled(workload.output_tokens, change.outputs),
        prefixes=prefixes,
        texts=None,
    )


def _scaled(tokens: Ints, factor: float) -> Ints:
    scaled: Ints = np.maximum(np.rint(tokens * factor), 1).astype(np.int64)
    return scaled


def consequence(
    change: WhatIf, candidate: Candidate, question: Question, serving: Serving, source: WorkloadSource
) -> Consequence:
    """Steady goodput of one placement after one change; the context grows with the requests."""
    slo = Slo(question.slo.ttft_s * change.ttft, question.slo.tpot_s * change.tpot, question.slo.attainment)
    longest = math.ceil(serving.max_model_len * max(1.0, change.prompts, change.outputs))
    context, serving = serving.max_model_len, replace(serving, max_model_len=longest)
    sample = changed(sample_of(source, question.seed), change)
    try:
        cluster = cluster_of(candidate, serving)
    except DoesNotFit as error:
        return Consequence(change, 0.0, str(error))
    link = replace(cluster.link, bytes_per_s=cluster.link.bytes_per_s * change.network)
    serving, cluster = replace(serving, link=link), replace(cluster, link=link)
    bounds = Screen(serving, slo, sample)(candidate)
    simulated = Simulated(cluster)

    def run(rate: float, num_requests: int, give_up: GiveUp) -> SimulationResult:
        workload = traffic(source, rate / candidate.replicas, num_requests, question.seed, context)
        return simulated.run(changed(workload, change), give_up)

    goodput = find_goodput(run, slo, bounds.rate, deciding(question.effort, cluster, source))
    why = binding_of(goodput.beyond, slo, bounds.binding, colocated=candidate.prefill is None)
    return Consequence(change, goodput.rate, why)
