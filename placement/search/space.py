"""Every placement that a budget allows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from placement.hardware.catalogue import GpuType
from placement.latency.shape import ModelShape
from placement.search.candidate import Candidate, Pool


@dataclass(frozen=True, slots=True)
class Space:
    """What may be tried."""

    gpus: int  # at most, both pools
    prefill_gpus: tuple[GpuType, ...]
    decode_gpus: tuple[GpuType, ...]
    tps: tuple[int, ...] = (1, 2, 4, 8)
    pps: tuple[int, ...] = (1,)
    chunks: tuple[int, ...] = (512, 2048)
    split: bool = True
    colocated: bool = True
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
    """All of them, colocated first, then by GPUs."""
    shapes = [(tp, pp) for tp in space.tps for pp in space.pps if _divides(tp, pp, model)]
    if space.colocated:
        for gpu in space.decode_gpus:
            for tp, pp in shapes:
                for workers in range(1, space.gpus // (tp * pp) + 1):
                    yield from _chunked(space, None, Pool(gpu, workers, tp, pp))
    if space.split:
        for prefill_gpu in space.prefill_gpus:
            for decode_gpu in space.decode_gpus:
                for prefill in _pools(space, prefill_gpu, shapes):
                    for decode in _pools(space, decode_gpu, shapes):
                        yield from _chunked(space, prefill, decode)


def _divides(tp: int, pp: int, model: ModelShape) -> bool:
    return model.heads % tp == 0 and model.layers % pp == 0


def _pools(space: Space, gpu: GpuType, shapes: list[tuple[int, int]]) -> Iterator[Pool]:
    for tp, pp in shapes:
        if tp > gpu.gpus_per_node:
            continue
        for workers in range(1, space.gpus // (tp * pp) + 1):
            yield Pool(gpu, workers, tp, pp)


def _chunked(space: Space, prefill: Pool | None, decode: Pool) -> Iterator[Candidate]:
    for chunk in space.chunks:
        candidate = Candidate(prefill, decode, chunk)
        if not space.allows(candidate) or (space.full and _has_room(space, candidate)):
            continue
        yield candidate


def _has_room(space: Space, candidate: Candidate) -> bool:
    """One more worker of some pool would still be within the budget: more GPUs never serve less."""
    prefill, decode = candidate.prefill, candidate.decode
    more = [Candidate(prefill, Pool(decode.gpu, decode.workers + 1, decode.tp, decode.pp), candidate.chunk_tokens)]
    if prefill is not None:
        bigger = Pool(prefill.gpu, prefill.workers + 1, prefill.tp, prefill.pp)
        more.append(Candidate(bigger, decode, candidate.chunk_tokens))
    return any(space.allows(one) for one in more)
