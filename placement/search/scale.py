"""Clusters too large to search: a part is searched, the part is repeated, and the whole is looked at a few times.

What one part serves, so many of them serve, each with its own router and its share of the requests. One large cluster
does a little better: its workers share what comes in bursts, and its pools need not be multiples of a small one's. So
some parts are joined, shrunk pool by pool while they surely carry their load, and repeated; then the whole is shrunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from placement.search.answer import Answer, Outcome, Scaled
from placement.search.build import Serving
from placement.search.candidate import shape_of
from placement.search.enlarge import Sized, enlarged
from placement.search.parallel import Closer, Processes, Task, look_closer
from placement.search.question import Question
from placement.search.space import Space
from placement.search.whatif import WhatIf

PART_GPUS = 64  # every number of workers is tried in a part
MOST_COPIES = 2048
_SHAPES = 2  # that are enlarged
_NEAR = 0.9  # of the best part's worth: so good must they be


def part_of(space: Space, copies: int) -> Space:
    """What one of so many equal parts may be."""
    return replace(
        space,
        gpus=max(1, min(PART_GPUS, space.gpus // copies)),
        max_cost_per_hour=space.max_cost_per_hour / copies,
        max_power_w=space.max_power_w / copies,
    )


def repeated(part: Answer, copies: int) -> Answer:
    """The same placement so many times, side by side: what it serves was simulated already."""
    bounds = replace(part.bounds, by_resource={name: copies * one for name, one in part.bounds.by_resource.items()})
    goodput = part.goodput
    if goodput is not None:
        probes = tuple(replace(one, rate=copies * one.rate) for one in goodput.probes)
        most = None if goodput.most is None else copies * goodput.most
        rates = {name: copies * getattr(goodput, name) for name in ("rate", "low", "high")}
        goodput = replace(goodput, probes=probes, most=most, **rates)
    candidate = replace(part.candidate, replicas=copies * part.candidate.replicas)
    return replace(part, candidate=candidate, bounds=bounds, goodput=goodput)


def run_scaled(
    part: Outcome, copies: int, question: Question, space: Space, serving: Serving, processes: Processes
) -> Outcome:
    """The whole, of so many parts; `question` and `space` are the whole's. Ctrl-C gives what is known by then."""
    best = part.sure or part.best
    if best is None:
        return replace(part, scaled=Scaled(part, copies))
    found = [repeated(best, copies)]
    sized: list[Sized] = []
    complete = part.complete

    def take(task: Task, result: Any, running: int) -> None:
        sized.append(result)

    if complete:
        tasks = [partial(enlarged, one, copies, question, space, serving) for one in _chosen(part, best, question)]
        try:
            processes.each(iter(tasks), take)
        except KeyboardInterrupt:
            complete = False
    found += [answer for one in sized for answer in one.answers]
    found.sort(key=lambda one: _order(one, question))
    sure = next((one for one in found if question.rate is not None and one.surely_good(question.slo.attainment)), None)
    how = Scaled(part, copies, sum(one.num_joined for one in sized), sum(one.num_whole for one in sized))
    return Outcome(found[0], sure, tuple(found), part.unfit, complete, how)


def scaled_closer(
    outcome: Outcome, question: Question, serving: Serving, changes: Sequence[WhatIf], processes: Processes
) -> Closer:
    """As look_closer; of a scaled answer its part is looked at, and what that serves is multiplied."""
    scaled = outcome.scaled
    if scaled is None:
        return look_closer(outcome, question, serving, changes, processes)
    asked = replace(question, rate=None if question.rate is None else question.rate / scaled.copies)
    found = look_closer(
        replace(scaled.part, best=scaled.part.sure or scaled.part.best), asked, serving, changes, processes
    )
    what_if = tuple(replace(one, rate=scaled.copies * one.rate) for one in found.what_if)
    return Closer(replace(outcome, scaled=replace(scaled, part=found.outcome)), what_if, found.complete)


def _chosen(part: Outcome, best: Answer, question: Question) -> list[Answer]:
    """The best of each shape that is near the best, without their runs: those are megabytes."""
    able = (one for one in part.answers if one.rate > 0.0)
    if question.rate is not None:
        able = (one for one in able if one.surely_good(question.slo.attainment))
    found: dict[object, Answer] = {shape_of(best.candidate): best}
    for answer in able:
        if _worth(answer, question) >= _NEAR * _worth(best, question):
            found.setdefault(shape_of(answer.candidate), answer)
    return [one.without_run for one in list(found.values())[:_SHAPES]]


def _worth(answer: Answer, question: Question) -> float:
    return answer.rate if question.rate is None else 1.0 / question.price.of(answer.candidate)


def _order(answer: Answer, question: Question) -> tuple[float, ...]:
    """Best first: the surest of those asked for, then one cluster rather than several."""
    unsure = question.rate is not None and not answer.surely_good(question.slo.attainment)
    return (float(unsure), -_worth(answer, question), float(answer.candidate.replicas))
