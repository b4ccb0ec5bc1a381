"""Packed products inside a `transformers` module, for families that have no native step."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from engine.host_memory import let_go
from engine.native.library import NativeLibrary
from engine.native.packed_linear import Packer


def use_packed_linears(module: Any, library: NativeLibrary) -> None:
    """Replace the forward of every linear layer by a packed product; weights that nobody else uses are let go.

    Called once, after the dry run.
    """
    packer = Packer(library)
    users = Counter(id(weight) for part in module.modules() for weight in part.parameters(recurse=False))
    for part in list(module.modules()):
        if type(part).forward is nn.Linear.forward:
            matrix: Tensor = part.weight
        elif isinstance(part, Conv1D):
            matrix = part.weight.t()
        else:
            continue
        part.forward = packer.pack([matrix], [part.bias]).multiply
        if users[id(part.weight)] == 1:
            let_go(part.weight)
