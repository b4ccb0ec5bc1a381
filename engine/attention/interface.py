"""What a model's attention layer asks, and what every backend answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from engine.batch import StepBatch


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One layer's way of attending, beside its queries and KV."""

    layer: int
    scale: float  # of the scores, before softcap
    window: int | None = None  # a query at p sees [p - window + 1, p]; None sees all before it
    softcap: float | None = None  # scores become softcap * tanh(scores / softcap)
    sinks: Tensor | None = None  # [H], a logit per head that takes part in the softmax and has no value


class AttentionBackend(Protocol):
    """Causal attention of a packed step over the pool; owned by one thread.

    begin() is called once per step, attend() once per layer, after this step's keys and values are in the pool.
    """

    def begin(self, batch: StepBatch) -> None:
        """Look at the step's lengths and block tables; what all layers share is built here, once."""
        ...

    def attend(self, query: Tensor, call: AttentionCall) -> Tensor:
        """Attend with every query of the step.

        Shapes:  query [H, T, Dk], T with padding rows; returns [T, H, Dv].
        Trusts:  rows from batch.num_tokens on are padding: they read no KV, and what they give is finite.
        """
        ...
