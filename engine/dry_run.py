"""Two small forward passes at load: what the attention layers really ask, and whether we compute this model rightly.

Some models ignore the attention they are told to use, or carry state between tokens beside it; both give fluent,
wrong text. So nothing is believed that was not seen: every layer calls once, with one shape of KV, and a prompt in two
chunks gives the logits of the model's own eager attention over the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.attention.dense import attend_dense
from engine.attention.interface import AttentionCall
from engine.attention.plug import ATTENTION_NAME, MaskFunction, attending
from engine.experts import TrialRouting, trial_routing
from engine.unsupported import UnsupportedModel
from pdserve.kv_layout import LayerLayout

CHUNKS = ((0, 7), (7, 12))  # of the trial prompt
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}  # of the logits' norm


@dataclass(frozen=True, slots=True)
class DryRunFacts:
    """What a model was seen to do."""

    layers: tuple[LayerLayout, ...]
    vocab_size: int  # logits per row
    calls: tuple[AttentionCall, ...]  # what each layer asked of its attention
    trial_ids: list[int]  # the prompt
    trial_logits: Tensor  # [T, V] of the module's own eager attention
    routing: TrialRouting  # what a mixture's routers chose then


class _Recorder:
    """Dense attention over what it has seen so far, per layer."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.calls: list[int] = []
        self.asked: dict[int, AttentionCall] = {}
        self.kv: dict[int, tuple[Tensor, Tensor]] = {}
        self.misshapen: list[int] = []
        self.masks: dict[int, tuple[Tensor, MaskFunction]] = {}  # by address, what was asked for
        self.used: dict[int, tuple[MaskFunction, int | None]] = {}  # by layer, with its window
        self.foreign: list[int] = []

    def mask(self, function: MaskFunction, num_queries: int) -> Tensor:
        """A stand-in of the mask's shape, known again by its address where a layer brings it along."""
        mask = torch.zeros(1, 1, num_queries, num_queries, device=self.device)
        self.masks[mask.data_ptr()] = mask, function
        return mask

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall, mask: Tensor | None) -> Tensor:
        self.calls.append(call.layer)
        self.asked[call.layer] = call
        if mask is not None and mask.data_ptr() not in self.masks:
            self.foreign.append(call.layer)
        elif mask is not None:
            self.used[call.layer] = self.masks[mask.data_ptr()][1], call.window
        fits = key.shape[:2] == value.shape[:2] and query.shape[1:] == key.shape[1:]
        if not fits or query.shape[0] % key.shape[0]:
            self.misshapen.append(call.layer)
            return query.new_zeros(query.shape[1], query.shape[0], value.shape[2])
        start = 0
        if call.layer in self.kv:
            before_key, before_value = self.kv[call.layer]
            start = before_key.shape[1]
            key, value = torch.cat([before_key, key], 1), torch.cat([before_value, value], 1)
        self.kv[call.layer] = key, value
        return attend_dense(query, key, value, start, call).transpose(0, 1)


def dry_run(module: Any, name: str, max_model_len: int) -> DryRunFacts:
    """Run the trial prompt both ways. `module` uses our attention before and after.

    Raises UnsupportedModel, with `name` in its message.
    """
    try:
        return _dry_run(module, name, max_model_len)
    except UnsupportedModel:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        raise UnsupportedModel(f"{name}: a trial run failed: {type(error).__name__}: {error}") from error


def _dry_run(module: Any, name: str, max_model_len: int) -> DryRunFacts:
    num_layers = module.config.get_text_config().num_hidden_layers
    device = module.get_input_embeddings().weight.device
    num_ids = module.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(CHUNKS[-1][1], device=device) * 7919 + 3)[None] % num_ids
    recorder = _Recorder(device)
    ours = []
    with torch.inference_mode(), attending(recorder), trial_routing(module) as routing:
        theirs = _eager_logits(module, ids)
        for first, last in CHUNKS:
            recorder.calls.clear()
            routing.replay(first, last)
            ours.append(_logits(module, ids[:, first:last], first))
            _check_calls(recorder, num_layers, name)
    _check_masks(recorder, max_model_len, name)
    _compare(torch.cat(ours), theirs, name)
    shapes = [recorder.kv[layer] for layer in range(num_layers)]
    layers = tuple(LayerLayout(key.shape[0], key.shape[2], value.shape[2]) for key, value in shapes)
    return DryRunFacts(
        layers=layers,
        vocab_size=theirs.shape[-1],
        calls=tuple(recorder.asked[layer] for layer in range(num_layers)),
        trial_ids=ids[0].tolist(),
        trial_logits=theirs,
        routing=routing,
    )


def _logits(module: Any, ids: Tensor, start: int) -> Tensor:
    """[T, V]; asks for rows by index, as a step does."""
    rows = torch.arange(ids.shape[1], device=ids.device)
    out = module(input_ids=ids, position_ids=rows[None] + start, use_cache=False, logits_to_keep=rows)
    logits: Tensor = out.logits[0]
    return logits


def _eager_logits(module: Any, ids: Tensor) -> Tensor:
    module.set_attn_implementation("eager")
    try:
        logits: Tensor = module(input_ids=ids, use_cache=False).logits[0]
        return logits
    finally:
        module.set_attn_implementation(ATTENTION_NAME)


def _check_calls(recorder: _Recorder, num_layers: int, name: str) -> None:
    if recorder.misshapen:
        raise UnsupportedModel(f"{name}: layer {recorder.misshapen[0]} has keys and values of unlike lengths or heads")
    if sorted(recorder.calls) != list(range(num_layers)):
        raise UnsupportedModel(
            f"{name}: {len(recorder.calls)} calls of paged attention in one pass, expected one from each of "
            f"{num_layers} layers; it has its own attention or carries other state between tokens"
        )


def _check_masks(recorder: _Recorder, max_model_len: int, name: str) -> None:
    """A layer's mask must be causal, with the window that the layer asks of its attention."""
    if recorder.foreign:
        raise UnsupportedModel(f"{name}: layer {recorder.foreign[0]} makes a mask of its own")
    device = recorder.device
    zero, key_at = torch.zeros((), dtype=torch.int64, device=device), torch.arange(max_model_len, device=device)[None]
    query_at = torch.tensor([max_model_len - 1, max_model_len // 2, max_model_len // 3], device=device)[:, None]
    causal = key_at <= query_at
    for layer, (function, window) in recorder.used.items():
        expected = causal if window is None else causal & (key_at > query_at - window)
        if not torch.equal(function(zero, zero, query_at, key_at).expand_as(causal), expected):
            raise UnsupportedModel(f"{name}: the mask of layer {layer} is neither causal nor its sliding window")


def _compare(ours: Tensor, theirs: Tensor, name: str) -> None:
    if ours.shape != theirs.shape:
        raise UnsupportedModel(f"{name}: gives {ours.shape[0]} rows of logits where {theirs.shape[0]} were asked for")
    limit = TOLERANCE[theirs.dtype]
    error = float((ours - theirs).float().norm() / theirs.float().norm().clamp_min(1e-30))
    if not error <= limit:
        raise UnsupportedModel(
            f"{name}: a prompt in two chunks differs from its own attention by {error:.1e} of the logits, limit {limit}"
        )
