"""Finding out where a forward pass asks the device something: a graph cannot be captured there, and a step stalls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense.default: "reads a number",
    aten.nonzero.default: "counts what is not zero",
    aten.masked_select.default: "selects by a mask",
    aten._unique2.default: "looks for unique values",
    aten.lift_fresh.default: "makes a tensor of Python numbers",
}
"""Operations that wait for the device or copy from pageable memory."""


class HostRead(RuntimeError):
    """The device was asked; the message says how."""


@contextmanager
def no_host_reads() -> Iterator[None]:
    """Inside, such an operation raises HostRead. Works on the CPU, too, where the same code would not wait."""
    with _Watch():  # type: ignore[no-untyped-call]
        yield


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITING:
            raise HostRead(f"the forward pass {WAITING[func]} on the host ({func})")
        return func(*args, **(kwargs or {}))
