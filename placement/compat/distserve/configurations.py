"""The placements that DistServe's search tries: its Algorithms 1 (high node affinity) and 2 (low)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from placement.compat.distserve.profile import ModelProfile, Parallel


class Affinity(Enum):
    """How fast nodes talk to each other."""

    HIGH = "high"  # the phases may lie on any GPUs
    LOW = "low"  # a prefill stage and the decode stage that it feeds share a node


@dataclass(frozen=True, slots=True)
class Configuration:
    """One prefill and one decode instance, cut into pp_cross segments of equal shape."""

    pp_cross: int
    prefill: Parallel  # within a segment
    decode: Parallel
    colocated: bool = False  # one instance does both: prefill and decode are the same GPUs

    @property
    def gpus(self) -> int:
        return self.pp_cross * (self.prefill.gpus if self.colocated else self.prefill.gpus + self.decode.gpus)

    def whole(self, phase: Parallel) -> Parallel:
        """A phase over all segments."""
        return Parallel(phase.tp, self.pp_cross * phase.pp)


def enumerate_configurations(
    model: ModelProfile, engine: str, nodes: int, gpus_per_node: int, affinity: Affinity
) -> list[Configuration]:
    """Every placement that fits the GPUs, divides the layers and leaves room for KV, in the order of its numbers."""
    every = nodes * gpus_per_node
    room = every if affinity is Affinity.HIGH else gpus_per_node
    crossings = [1] if affinity is Affinity.HIGH else range(1, nodes + 1)
    return [
        one
        for pp_cross in crossings
        for one in _segments(model, engine, pp_cross, room)
        if one.gpus <= every
        and model.capacity(one.whole(one.prefill)) is not None
        and model.capacity(one.whole(one.decode)) is not None
    ]


def _segments(model: ModelProfile, engine: str, pp_cross: int, room: int) -> Iterator[Configuration]:
    sizes = sorted(model.of_engine(engine))
    phases = [Parallel(tp, pp) for tp in sizes for pp in range(1, room + 1) if model.layers % (pp_cross * pp) == 0]
    for prefill in phases:
        for decode in phases:
            if prefill.gpus + decode.gpus <= room:
                yield Configuration(pp_cross, prefill, decode)


def enumerate_colocated(model: ModelProfile, engine: str, num_gpus: int) -> list[Configuration]:
    """Of the colocated baseline: every tp and pp that fits, whatever the affinity."""
    phases = [
        Parallel(tp, pp)
        for tp in sorted(model.of_engine(engine))
        for pp in range(1, num_gpus // tp + 1)
        if model.layers % pp == 0
    ]
    return [Configuration(1, one, one, colocated=True) for one in phases if model.capacity(one) is not None]
