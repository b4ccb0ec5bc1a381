"""Which transports a worker offers, best first."""

from __future__ import annotations

from collections.abc import Mapping

from kv_transfer.transports import SharedMemoryTransport, Transport

SAME_HOST_ONLY = frozenset({"shm"})
"""Names of transports that need one host."""


def make_transports(kv_transport: str) -> Mapping[str, Transport]:
    """The transports that `--kv-transport` allows, by name, in order of preference."""
    makers = {"shm": SharedMemoryTransport}
    names = list(makers) if kv_transport == "auto" else [kv_transport]
    return {name: makers[name]() for name in names}
