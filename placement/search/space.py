"""Every placement that a budget allows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

from placement.hardware.catalogue import GpuType
from placement.latency.shape import ModelShape
from placement.search.candidate import Candidate, Pool

MAX_CANDIDATES = 500_000
EVERY_NUMBER = 128  # GPUs up to which every number of workers is tried

_Grow = Callable[[Candidate, int], Candidate]


class Affinity(Enum):
    """Where the KV of a request may go (DistServe, section 4)."""

    HIGH = "high"  # anywhere: any placement over the nodes (algorithm 1)
    LOW = "low"  # not to another node: prefill and decode share one, and that is repeated (algorithm 2)


@dataclass(frozen=True, slots=True)
class Space:
    """What may be tried."""

    gpus: int  # at most, both pools
    prefill_gpus: tuple[GpuType, ...]
    decode_gpus: tuple[GpuType, ...]
    tps: tuple[int, ...] = (1, 2, 4, 8)
    pps: tuple[int, ...] = (1,)
    chunks: tuple[int, ...] = (512, 2048)
    local_prefill: tuple[int, ...] = (0,)
    split: bool = True
    colocated: bool = True
    affinity: Affinity = Affinity.HIGH
    max_cost_per_hour: float = math.inf
    max_power_w: float = math.inf
    full: bool = True  # leave out what has room for one more worker within the budget

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ValueError(f"gpus is {self.gpus}, must be at least 1")
        if not (self.split or self.colocated):
            raise ValueError("neither split nor colocated placements may be tried")

    def allows(self, candidate: Candidate) -> bool:
        """Whether it is within every budget."""
        return (
            candidate.gpus <= self.gpus
            and candidate.cost_per_hour <= self.max_cost_per_hour
            and candidate.power_w <= self.max_power_w
        )


def candidates(space: Space, model: ModelShape) -> Iterator[Candidate]:
    """All of them, colocated first. Errors: ValueError after too many."""
    found = itertools.chain(
        _colocated(space, model) if space.colocated else (),
        (_low(space, model) if space.affinity is Affinity.LOW else _high(space, model)) if space.split else (),
    )
    for number, candidate in enumerate(found):
        if number == MAX_CANDIDATES:
            raise ValueError(f"more than {MAX_CANDIDATES:,} placements; allow fewer sizes, chunks or GPUs")
        yield candidate


def _shapes(space: Space, model: ModelShape, gpu: GpuType) -> list[Pool]:
    """One worker of every size."""
    return [
        Pool(gpu, 1, tp, pp)
        for tp in space.tps
        for pp in space.pps
        if model.heads % tp == 0 and model.layers % pp == 0 and tp <= gpu.gpus_per_node and tp * pp <= space.gpus
    ]


def _colocated(space: Space, model: ModelShape) -> Iterator[Candidate]:
    for gpu, chunk in itertools.product(space.decode_gpus, space.chunks):
        for one in _shapes(space, model, gpu):
            yield from _sized(space, Candidate(None, one, chunk), _with_decode)


def _high(space: Space, model: ModelShape) -> Iterator[Candidate]:
    exact = space.gpus <= EVERY_NUMBER
    for prefill_gpu, decode_gpu in itertools.product(space.prefill_gpus, space.decode_gpus):
        for prefill, decode in itertools.product(_shapes(space, model, prefill_gpu), _shapes(space, model, decode_gpu)):
            for chunk, local in itertools.product(space.chunks, space.local_prefill):
                for workers in _counts(space, space.gpus // prefill.gpus):
                    smallest = Candidate(replace(prefill, workers=workers), decode, chunk, local)
                    if not space.allows(smallest):
                        break
                    yield from (
                        one
                        for one in _sized(space, smallest, _with_decode)
                        if not (space.full and exact and space.allows(_with_prefill(one, workers + 1)))
                    )


def _low(space: Space, model: ModelShape) -> Iterator[Candidate]:
    """Placements within one node, as often as they fit."""
    for gpu in space.decode_gpus:
        if gpu not in space.prefill_gpus:
            continue
        per_node = min(gpu.gpus_per_node, space.gpus)
        for prefill, decode in itertools.product(_shapes(space, model, gpu), repeat=2):
            most = (per_node // prefill.gpus, per_node // decode.gpus)
            for p, d in itertools.product(range(1, most[0] + 1), range(1, most[1] + 1)):
                if p * prefill.gpus + d * decode.gpus > per_node:
                    continue
                for chunk, local in itertools.product(space.chunks, space.local_prefill):
                    instance = Candidate(replace(prefill, workers=p), replace(decode, workers=d), chunk, local)
                    yield from _sized(space, instance, lambda candidate, n: replace(candidate, replicas=n))


def _sized(space: Space, smallest: Candidate, grown: _Grow) -> Iterator[Candidate]:
    """`smallest`, and with more of what `grown` counts; only the largest that is allowed where it must be full."""
    most = _most(space, smallest, grown)
    for number in _counts(space, most) if not space.full else range(most, most + 1):
        if number > 0:
            yield grown(smallest, number)


def _most(space: Space, smallest: Candidate, grown: _Grow) -> int:
    """How many are allowed, 0 if not one: every budget is used up steadily, so by bisection."""
    low, high = 0, 1
    while space.allows(grown(smallest, high)):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if space.allows(grown(smallest, middle)) else (low, middle)
    return low


def _counts(space: Space, most: int) -> Iterator[int]:
    """1, 2, ... most; of clusters so large that every number would be too many, numbers 3 % or 6 % apart."""
    number, grain = 1, 32 if space.gpus <= 4 * EVERY_NUMBER else 16
    while number <= most:
        yield number
        number += 1 if space.gpus <= EVERY_NUMBER else max(1, number // grain)


def _with_decode(candidate: Candidate, workers: int) -> Candidate:
    return replace(candidate, decode=replace(candidate.decode, workers=workers))


def _with_prefill(candidate: Candidate, workers: int) -> Candidate:
    assert candidate.prefill is not None
    return replace(candidate, prefill=replace(candidate.prefill, workers=workers))
