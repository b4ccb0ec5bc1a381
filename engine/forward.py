"""One forward pass of a packed step: what the runner asks, and the pass that is a `transformers` module's own."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from engine.attention.interface import AttentionBackend
from engine.attention.plug import KvWriter, PagedSink, attending
from engine.batch import StepBatch


class Forward(Protocol):
    """A model over one pool; owned by one thread."""

    def __call__(self, batch: StepBatch) -> Tensor:
        """Write the step's KV and give the logits of the rows that sample: [num_samples, V], valid until the next."""
        ...


class ModuleForward:
    """The module's forward with our attention in it."""

    def __init__(self, module: Any, writer: KvWriter, backend: AttentionBackend) -> None:
        self._module, self._writer, self._backend = module, writer, backend

    @torch.inference_mode()
    def __call__(self, batch: StepBatch) -> Tensor:
        self._backend.begin(batch)
        with attending(PagedSink(self._writer, self._backend, batch)):
            out = self._module(
                input_ids=batch.input_ids,
                position_ids=batch.positions,
                use_cache=False,
                logits_to_keep=batch.sample_rows,
            )
        logits: Tensor = out.logits[0, : batch.num_samples]
        return logits
