"""A mixture's experts, each over its own tokens, in fixed numbers of rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from engine.row_tiles import ROW_TILE, RowTiles

EXPERTS_NAME = "pdserve"


class TrialRouting:
    """The routers' choices of one pass, imposed on others: rounding alone may send a token to other experts, and the
    difference would hide, or look like, a wrong model."""

    def __init__(self) -> None:
        self._choices: list[tuple[Tensor, Tensor]] = []  # per mixture, in order: index and weights of every row
        self._replayed = 0
        self._rows: slice | None = None

    def replay(self, first: int, last: int) -> None:
        """From here on the choices are those that were recorded for these rows."""
        self._rows, self._replayed = slice(first, last), 0

    def route(self, index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Record what a router chose, or give what it chose before."""
        if self._rows is None:
            self._choices.append((index, weights))
            return index, weights
        known_index, known_weights = (part[self._rows] for part in self._choices[self._replayed])
        self._replayed += 1
        known = len(known_index)  # rows beyond are padding
        return torch.cat([known_index, index[known:]]), torch.cat([known_weights, weights[known:]])


@contextmanager
def trial_routing(module: Any, routing: TrialRouting | None = None) -> Iterator[TrialRouting]:
    """Inside, the model's mixtures obey the routing that this gives: it records until told to replay."""
    routing = routing or TrialRouting()
    mixtures = [part for part in module.modules() if uses_experts(part)]
    before = module.config.get_text_config()._experts_implementation
    if mixtures:
        module.set_experts_implementation(EXPERTS_NAME)
    for part in mixtures:
        part.trial_routing = routing
    try:
        yield routing
    finally:
        for part in mixtures:
            del part.trial_routing
        if mixtures:
            module.set_experts_implementation(before)


def uses_experts(part: nn.Module) -> bool:
    """Whether the module lets an implementation of its experts be chosen (transformers' use_experts_implementation)."""
    return hasattr(part, "_is_expert_parallel") and hasattr(part, "down_proj")


def _experts(part: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Shapes: hidden [T, D], top_k_index and top_k_weights [T, k]; returns [T, D].

    The k results of a token are added in the order in which its router named them.
    """
    routing: TrialRouting | None = getattr(part, "trial_routing", None)
    if routing is not None:
        top_k_index, top_k_weights = routing.route(top_k_index, top_k_weights)
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
    tiles: RowTiles | None = getattr(part, "row_tiles", None)
    weight = getattr(part, name)[expert]
    bias = getattr(part, f"{name}_bias")[expert] if part.has_bias else None
    matrix = weight if part.is_transposed else weight.t()
    if tiles is not None:
        return tiles.multiply(rows, matrix, bias)
    return rows @ matrix if bias is None else torch.addmm(bias, rows, matrix)


ALL_EXPERTS_FUNCTIONS.register(EXPERTS_NAME, _experts)
