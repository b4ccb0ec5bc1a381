"""What waits for a device is found, in and out of inference mode; what does not is let pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine.gpu.host_reads import HostRead, no_host_reads

VALUES = torch.arange(6.0)
WAIT: dict[str, Callable[[], object]] = {
    "number": lambda: float(VALUES.sum()),
    "item": lambda: VALUES.max().item(),
    "branch": lambda: 1 if (VALUES > 2).all() else 0,
    "nonzero": lambda: (VALUES > 2).nonzero(),
    "mask": lambda: VALUES[VALUES > 2],
    "where": lambda: torch.where(VALUES > 2),
    "unique": lambda: VALUES.unique(),
    "repeats": lambda: VALUES.repeat_interleave(torch.ones(6, dtype=torch.int64)),
    "literal": lambda: torch.tensor([1.0, 2.0]),
}


@pytest.mark.parametrize("act", WAIT.values(), ids=WAIT)
@pytest.mark.parametrize("inference", [False, True])
def test_what_waits_is_found(act: Callable[[], object], inference: bool) -> None:
    """Also inside other modes, as a forward pass has them."""
    with pytest.raises(HostRead, match="on the host"), no_host_reads(), torch.inference_mode(inference):
        act()


def test_what_does_not_wait_passes() -> None:
    """Gathers by number, where with three arguments, sorting, sums."""

    def act() -> Tensor:
        order = VALUES.argsort(descending=True)
        return torch.where(VALUES > 2, VALUES[order], 0.0).cumsum(0)

    with no_host_reads(), torch.inference_mode():
        assert act().shape == VALUES.shape
