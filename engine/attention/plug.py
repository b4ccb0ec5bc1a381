"""Our attention under a name that `transformers` models can be told to use.

The registered function finds who answers by thread: inside `attending(sink)` every attention layer of a model that
runs on this thread asks `sink`. Two engines in one process, each on its own thread, do not meet.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from engine.attention.interface import AttentionBackend, AttentionCall
from engine.batch import StepBatch
from engine.unsupported import UnsupportedModel

ATTENTION_NAME = "pdserve"
HARMLESS = {"position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states", "return_dict"}
HARMLESS |= {"position_embeddings", "logits_to_keep", "output_router_logits", "input_ids", "past_key_values"}


MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch, head, query position, key position) -> whether the query sees the key; broadcasts. From transformers."""


class AttentionSink(Protocol):
    """Answers the attention layers of one forward pass."""

    def mask(self, function: MaskFunction, num_queries: int) -> Tensor | None:
        """The model asks for this mask of the step; what comes back reaches attend() of the layers that use it."""
        ...

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall, mask: Tensor | None) -> Tensor:
        """Shapes: query [H, T, Dk], key [K, T, Dk], value [K, T, Dv]; returns [T, H, Dv]."""
        ...


class KvWriter(Protocol):
    """Puts keys and values where they belong: the pool itself, or a kernel that is quicker."""

    def write(self, layer: int, block_ids: Tensor, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """As KvPool.write."""
        ...


class PagedSink:
    """Writes the step's keys and values into the pool, then asks the backend."""

    def __init__(self, writer: KvWriter, backend: AttentionBackend, batch: StepBatch) -> None:
        self._writer, self._backend, self._batch = writer, backend, batch

    def mask(self, function: MaskFunction, num_queries: int) -> None:
        """None: the dry run has seen that a layer's mask says what its window says."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall, mask: Tensor | None) -> Tensor:
        assert mask is None, "a mask that the dry run did not see"
        batch, n = self._batch, self._batch.num_tokens
        by_token = (key[:, :n].transpose(0, 1), value[:, :n].transpose(0, 1))
        self._writer.write(call.layer, batch.write_blocks, batch.write_slots, *by_token)
        return self._backend.attend(query, call)


_thread = threading.local()


@contextmanager
def attending(sink: AttentionSink) -> Iterator[None]:
    """Inside, this thread's attention layers ask `sink`."""
    _thread.sink = sink
    try:
        yield
    finally:
        _thread.sink = None


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What a model calls: query [1, H, T, Dk], key [1, K, T, Dk], value [1, K, T, Dv] -> ([1, T, H, Dv], None)."""
    sink: AttentionSink | None = getattr(_thread, "sink", None)
    if sink is None:
        raise RuntimeError("attention was called outside a step")
    strange = sorted(name for name, value in others.items() if value is not None and name not in HARMLESS)
    if strange or dropout or is_causal is False:
        what = ", ".join(strange) or "dropout or two-sided attention"
        raise UnsupportedModel(f"{type(module).__name__} asks its attention for {what}, which is not supported")
    call = AttentionCall(
        layer=_layer_index(module),
        scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    return sink.attend(query[0], key[0], value[0], call, attention_mask)[None], None


def _layer_index(module: torch.nn.Module) -> int:
    index = getattr(module, "layer_idx", None)
    if not isinstance(index, int):
        raise UnsupportedModel(f"{type(module).__name__} does not say which layer it is")
    return index


def _mask(*_args: Any, mask_function: MaskFunction, q_length: Any, **_kwargs: Any) -> Tensor | None:
    """In a step, none: what a query sees follows from positions and window, in the backend."""
    sink: AttentionSink | None = getattr(_thread, "sink", None)
    return None if sink is None else sink.mask(mask_function, int(q_length))


AttentionInterface.register(ATTENTION_NAME, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, _mask)
