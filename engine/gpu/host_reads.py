"""Finding out where a forward pass asks the device something: a graph cannot be captured there, and a step stalls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    "aten::item": "reads a number",
    "aten::_local_scalar_dense": "reads a number",
    "aten::is_nonzero": "reads a truth value",
    "aten::equal": "compares whole tensors",
    "aten::allclose": "compares whole tensors",
    "aten::nonzero": "counts what is not zero",
    "aten::nonzero_numpy": "counts what is not zero",
    "aten::argwhere": "counts what is not zero",
    "aten::masked_select": "selects by a mask",
    "aten::_unique2": "looks for unique values",
    "aten::unique_consecutive": "looks for unique values",
    "aten::unique_dim": "looks for unique values",
    "aten::bincount": "counts values",
    "aten::lift_fresh": "makes a tensor of Python numbers",
}
"""Operations that wait for the device or copy from pageable memory; in inference mode composite ones come as such."""
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class HostRead(RuntimeError):
    """The device was asked; the message says how."""


@contextmanager
def no_host_reads() -> Iterator[None]:
    """Inside, such an operation raises. Works on the CPU, too, where the same code would not wait.

    On a GPU torch itself watches as well, and raises RuntimeError.
    """
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    before = torch.cuda.get_sync_debug_mode() if on_gpu else 0
    if on_gpu:
        torch.cuda.set_sync_debug_mode("error")
    try:
        with _Watch():  # type: ignore[no-untyped-call]
            yield
    finally:
        if on_gpu:
            torch.cuda.set_sync_debug_mode(before)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        what = _waits(func._schema.name, args, kwargs or {})
        if what is not None:
            raise HostRead(f"the forward pass {what} on the host ({func})")
        return func(*args, **(kwargs or {}))


def _waits(name: str, args: Any, kwargs: dict[str, Any]) -> str | None:
    if name in INDEXING:
        by_mask = any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        return "selects by a mask" if by_mask else None
    if name == "aten::repeat_interleave":
        by_tensor = isinstance(args[-1], Tensor) and kwargs.get("output_size") is None
        return "repeats by counts" if by_tensor else None
    if name == "aten::where":
        return "counts what is not zero" if len(args) == 1 else None
    return WAITING.get(name)
