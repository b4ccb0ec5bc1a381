"""A mixture's experts, each over its own tokens, in fixed numbers of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from engine.row_tiles import ROW_TILE, RowTiles

EXPERTS_NAME = "pdserve"


def uses_experts(part: nn.Module) -> bool:
    """Whether the module lets an implementation of its experts be chosen (transformers' use_experts_implementation)."""
    return hasattr(part, "_is_expert_parallel") and hasattr(part, "down_proj")


def _experts(part: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Shapes: hidden [T, D], top_k_index and top_k_weights [T, k]; returns [T, D].

    The k results of a token are added in the order in which its router named them.
    """
    tokens, k = top_k_index.shape
    chosen = top_k_index.flatten()
    results = hidden.new_zeros(tokens * k, hidden.shape[1])
    for expert in torch.unique(chosen).tolist():
        if expert >= part.num_experts:
            continue
        places = (chosen == expert).nonzero()[:, 0]
        spare = -len(places) % ROW_TILE  # activations, too, run over whole tiles
        rows = torch.cat([hidden[places // k], hidden.new_zeros(spare, hidden.shape[1])])
        results[places] = _one_expert(part, rows, expert)[: len(places)]
    weighted = results.view(tokens, k, -1) * top_k_weights[..., None]
    total = weighted[:, 0]
    for index in range(1, k):
        total = total + weighted[:, index]
    return total.to(hidden.dtype)


def _one_expert(part: Any, rows: Tensor, expert: int) -> Tensor:
    first = "gate_up_proj" if part.has_gate else "up_proj"
    inner = _project(part, first, rows, expert)
    inner = part._apply_gate(inner) if part.has_gate else part.act_fn(inner)
    out = _project(part, "down_proj", inner, expert)
    return part.post_expert_norm(out) if part.has_post_expert_norm else out


def _project(part: Any, name: str, rows: Tensor, expert: int) -> Tensor:
    tiles: RowTiles = part.row_tiles
    weight = getattr(part, name)[expert]
    bias = getattr(part, f"{name}_bias")[expert] if part.has_bias else None
    return tiles.multiply(rows, weight if part.is_transposed else weight.t(), bias)


ALL_EXPERTS_FUNCTIONS.register(EXPERTS_NAME, _experts)
