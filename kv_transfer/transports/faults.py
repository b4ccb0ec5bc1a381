"""Damage on purpose, done by the sending end: what the tests and the fault injector give a transport."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kv_transfer.frame import Descriptor


def _unharmed(payload: memoryview) -> None:
    return


def _unchanged(descriptor: Descriptor) -> Descriptor:
    return descriptor


@dataclass(frozen=True, slots=True)
class Faults:
    """Called on the transport's thread; the defaults do nothing."""

    after_digest: Callable[[memoryview], None] = _unharmed  # given bytes between their digest and their departure
    alter: Callable[[Descriptor], Descriptor] = _unchanged  # per frame: what is sent instead of the true descriptor


NO_FAULTS = Faults()
