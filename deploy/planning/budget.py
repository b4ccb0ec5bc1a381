"""What --gpus, --max-cost and --max-power allow, in their words."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from deploy.arguments import flag
from deploy.words import counted
from pdserve.settings import ConfigError
from placement.hardware.catalogue import GpuType
from placement.search.build import DoesNotFit, Serving
from placement.search.candidate import Candidate, Pool
from placement.search.space import Affinity, Space, candidates


@dataclass(frozen=True, slots=True)
class _Limit:
    """Of a flag."""

    field: str  # of Space
    amount: Callable[[Candidate], float]
    said: Callable[[float], str]

    def least_first(self, one: Candidate) -> tuple[float, float, float]:
        return self.amount(one), one.gpus, one.cost_per_hour


_LIMITS = {
    "gpus": _Limit("gpus", lambda one: one.gpus, lambda gpus: counted(gpus, "GPU")),
    "max_cost": _Limit("max_cost_per_hour", lambda one: one.cost_per_hour, lambda dollars: f"{dollars:,.2f} $/h"),
    "max_power": _Limit("max_power_w", lambda one: one.power_w, lambda watts: f"{watts:,.0f} W"),
}


def budget_in_words(args: argparse.Namespace) -> str:
    """`--gpus 4 and --max-cost 10`; empty where nothing limits."""
    return " and ".join(f"{flag(name)} {getattr(args, name):g}" for name in _given(args))


def check_budget(args: argparse.Namespace, space: Space, serving: Serving) -> None:
    """Errors: ConfigError naming each flag that leaves no placement that holds the model, and what the least one takes.

    Where none holds it whatever is allowed, the search says why.
    """
    smallest = list(_smallest(space, serving))
    if not smallest or any(space.allows(one) for one in smallest):
        return
    problems = []
    for name in _given(args):
        limit = _LIMITS[name]
        least = min(smallest, key=limit.least_first)
        if limit.amount(least) > getattr(space, limit.field):
            problems.append(
                f"{flag(name)} is {getattr(args, name):g}; the least placement, {least}, takes "
                f"{limit.said(limit.amount(least))}"
            )
    if not problems:
        problems = [f"no placement keeps within {budget_in_words(args)} together"]
    raise ConfigError(problems)


def _given(args: argparse.Namespace) -> list[str]:
    return [name for name in _LIMITS if getattr(args, name) is not None]


def _smallest(space: Space, serving: Serving) -> Iterator[Candidate]:
    """One worker of every size in each pool, where both hold the model: all others take more, of everything."""
    prefill, decode = (list(_holding(space, types, serving)) for types in (space.prefill_gpus, space.decode_gpus))
    chunk = space.chunks[0]
    if space.colocated:
        yield from (Candidate(None, one, chunk) for one in decode)
    if space.split:
        pairs = (Candidate(*pair, chunk) for pair in itertools.product(prefill, decode))
        yield from (one for one in pairs if space.affinity is Affinity.HIGH or one.in_one_node)


def _holding(space: Space, types: tuple[GpuType, ...], serving: Serving) -> Iterator[Pool]:
    """One worker of each size and type that holds the weights and the longest request, whatever the budgets."""
    for tp, pp in itertools.product(space.tps, space.pps):
        free = Space(tp * pp, types, types, (tp,), (pp,), space.chunks[:1], split=False)
        for one in candidates(free, serving.model):
            try:
                serving.times(one.decode)
                serving.blocks(one.decode)
            except DoesNotFit:
                continue
            yield one.decode
