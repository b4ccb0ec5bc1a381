"""What --gpus, --max-cost and --max-power allow, in their words."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from deploy.arguments import flag
from deploy.words import counted
from pdserve.settings import ConfigError
from placement.latency.shape import ModelShape
from placement.search.candidate import Candidate
from placement.search.space import Space, candidates

_MOST_GPUS = 1 << 12  # of the smallest placement: beyond it, sizes are the matter


@dataclass(frozen=True, slots=True)
class _Limit:
    """Of a flag."""

    field: str  # of Space
    amount: Callable[[Candidate], float]
    said: Callable[[float], str]


_LIMITS = {
    "gpus": _Limit("gpus", lambda one: one.gpus, lambda gpus: counted(gpus, "GPU")),
    "max_cost": _Limit("max_cost_per_hour", lambda one: one.cost_per_hour, lambda dollars: f"{dollars:,.2f} $/h"),
    "max_power": _Limit("max_power_w", lambda one: one.power_w, lambda watts: f"{watts:,.0f} W"),
}


def budget_in_words(args: argparse.Namespace) -> str:
    """`--gpus 4 and --max-cost 10`; empty where nothing limits."""
    return " and ".join(f"{flag(name)} {getattr(args, name):g}" for name in _given(args))


def check_budget(args: argparse.Namespace, space: Space, model: ModelShape) -> None:
    """Errors: ConfigError naming each flag that leaves no placement at all, and what the least one takes."""
    if next(candidates(space, model), None) is not None:
        return
    smallest = _smallest(space, model)
    if not smallest:
        return
    problems = []
    for name in _given(args):
        limit = _LIMITS[name]
        least = min(smallest, key=limit.amount)
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


def _smallest(space: Space, model: ModelShape) -> list[Candidate]:
    """Placements of the fewest GPUs that there are any of, without limits."""
    gpus = 1
    while gpus <= _MOST_GPUS:
        free = replace(
            space, gpus=gpus, max_cost_per_hour=math.inf, max_power_w=math.inf, chunks=space.chunks[:1], full=False
        )
        if found := list(candidates(free, model)):
            return found
        gpus *= 2
    return []
