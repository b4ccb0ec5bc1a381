"""Making a loaded float32 CPU model batch-invariant: its rows do not depend on how many there are.

A matrix product takes another path for few rows (below 16 here), and the path may change again with their number. So
every product runs in a few fixed numbers of rows, and a larger one than ROW_TILE is used only after it gave, on this
machine and for this shape, the very bits of ROW_TILE.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from engine.experts import EXPERTS_NAME, uses_experts
from engine.row_tiles import RowTiles


def make_invariant(module: Any) -> None:
    """Replace, in place, how every matrix product of the model is computed. Called once, after the dry run."""
    tiles = RowTiles()
    for part in module.modules():
        if "forward" in vars(part):
            continue  # packed: its rows are their own affair already
        if type(part).forward is nn.Linear.forward:
            replace_forward(part, _Linear(tiles, part.weight, part.bias, transposed=True))
        elif isinstance(part, Conv1D):
            replace_forward(part, _Linear(tiles, part.weight, part.bias, transposed=False))
        elif uses_experts(part):
            part.row_tiles = tiles
        elif _multiplies(part):
            replace_forward(part, _Inside(tiles, part.forward))
    if any(uses_experts(part) for part in module.modules()):
        module.set_experts_implementation(EXPERTS_NAME)


def replace_forward(part: Any, forward: Any) -> None:
    """An instance's own forward goes before its class's; names and weights of the module stay."""
    part.forward = forward


def _multiplies(part: nn.Module) -> bool:
    """A module with a matrix of its own that is no layer we know: a mixture's router, mostly."""
    known = isinstance(part, nn.Embedding)
    return not known and any(weight.dim() > 1 for weight in part.parameters(recurse=False))


class _Linear:
    """The forward of a linear layer, by row tiles."""

    def __init__(self, tiles: RowTiles, weight: Tensor, bias: Tensor | None, transposed: bool) -> None:
        self._tiles = tiles
        self._weight, self._bias = weight, bias
        self._transposed = transposed

    def __call__(self, rows: Tensor) -> Tensor:
        matrix = self._weight.t() if self._transposed else self._weight
        return self._tiles.multiply(rows, matrix, self._bias)


class _Inside:
    """The forward of a module that calls F.linear itself: inside, those calls go by row tiles."""

    def __init__(self, tiles: RowTiles, forward: Any) -> None:
        self._mode, self._forward = _TiledLinears(tiles), forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._mode:
            return self._forward(*args, **kwargs)


class _TiledLinears(TorchFunctionMode):
    """Sends F.linear to row tiles."""

    def __init__(self, tiles: RowTiles) -> None:
        super().__init__()
        self._tiles = tiles

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            return self._linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return self._tiles.multiply(input, weight.t(), bias)
