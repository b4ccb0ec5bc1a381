"""Triton as the tests use it: on a GPU where there is one, else interpreted on CPU tensors; skipped without Triton."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _import_triton() -> Any:
    """Triton, or None. Without a GPU, kernels that are defined from now on are interpreted.

    Torch has imported Triton before, so its own library in `triton.language` is made interpretable here. And Triton
    3.6 turns arrays of one number into integers in a way that NumPy 2.4 refuses; loop bounds need it.
    """
    if importlib.util.find_spec("triton") is None:
        return None
    triton = importlib.import_module("triton")
    if DEVICE.type == "cuda":
        return triton
    triton.knobs.propagate_env = False  # child processes are not to interpret
    triton.knobs.runtime.interpret = True
    interpreter = importlib.import_module("triton.runtime.interpreter")
    for library in (triton.language, triton.language.standard):
        for name, function in vars(library).copy().items():
            if isinstance(function, triton.JITFunction):
                setattr(library, name, interpreter.InterpretedFunction(function.fn))
    patch_tensor = interpreter._patch_lang_tensor

    def patch_for_numpy(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_for_numpy
    return triton


TRITON = _import_triton()


@pytest.fixture(scope="session")
def kernel_device() -> torch.device:
    """Where kernels run in this session; skips where Triton is not installed."""
    if TRITON is None:
        pytest.skip("Triton is not installed: pip install '.[gpu]'")
    return DEVICE
