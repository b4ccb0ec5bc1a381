"""One forward pass of a `transformers` model with our kernels inside, written so that a CUDA graph can hold it.

What would break a capture, and what is done about it:

    a read on the host        transformers looks at positions to detect packed sequences whenever no mask is given:
                              a finished mask is given, which nobody looks into
    a branch on a value       rotary variants that depend on the call's length are fixed at load (engine/rope.py)
    an allocation elsewhere   scratch and inputs exist before; what the pass allocates comes from the graphs' pool
    Triton's compilation      every kernel has run once before, in the same shapes
    anything we do not know   host_reads.py looks at a pass before it is captured; such a model runs eagerly
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.attention.interface import AttentionCall
from engine.attention.plug import MaskFunction, attending
from engine.gpu.attention import TritonAttention
from engine.gpu.plan import AttentionPlan


class ModelForward:
    """The model over one pool; owned by one thread."""

    def __init__(self, module: Any, attention: TritonAttention, device: torch.device) -> None:
        self._module = module
        self.attention = attention
        self._no_mask = torch.zeros(1, 1, 1, 1, device=device)
        self._sink = _KernelSink(attention, self._no_mask)

    @torch.inference_mode()
    def __call__(self, plan: AttentionPlan, input_ids: Tensor, sample_rows: Tensor) -> Tensor:
        """Write the step's KV; the logits of some rows.

        Shapes:  input_ids [T]; sample_rows [n] int64, rows of the step; returns [n, V].
        """
        self.attention.use(plan)
        with attending(self._sink):
            out = self._module(
                input_ids=input_ids[None],
                position_ids=plan.positions[None],
                attention_mask=self._no_mask,
                use_cache=False,
                logits_to_keep=sample_rows,
            )
        logits: Tensor = out.logits[0]
        return logits


class _KernelSink:
    """Writes KV and attends by the kernels."""

    def __init__(self, attention: TritonAttention, no_mask: Tensor) -> None:
        self._attention = attention
        self._address = no_mask.data_ptr()

    def mask(self, function: MaskFunction, num_queries: int) -> None:
        """Asked where a model makes a mask although one was given; the dry run has seen that windows say it all."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall, mask: Tensor | None) -> Tensor:
        assert mask is None or mask.data_ptr() == self._address, "a mask that the dry run did not see"
        self._attention.write(call.layer, key, value)
        return self._attention.attend(query, call)


class _HeadCounter:
    """Answers attention with zeros and remembers how many query heads each layer has."""

    def __init__(self) -> None:
        self.heads: dict[int, int] = {}

    def mask(self, function: MaskFunction, num_queries: int) -> None:
        """None."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall, mask: Tensor | None) -> Tensor:
        self.heads[call.layer] = query.shape[0]
        return query.new_zeros(query.shape[1], query.shape[0], value.shape[2])


@dataclass(frozen=True, slots=True)
class Probed:
    """What one pass over one token shows."""

    num_heads: list[int]  # query heads of each layer
    vocab: int  # columns of the logits


@torch.inference_mode()
def probe(module: Any, device: torch.device) -> Probed:
    """Called once, at load."""
    counter, token = _HeadCounter(), torch.zeros(1, 1, dtype=torch.int64, device=device)
    with attending(counter):
        out = module(input_ids=token, position_ids=token, use_cache=False)
    return Probed([counter.heads[layer] for layer in range(len(counter.heads))], int(out.logits.shape[-1]))
