"""How fast each transport moves KV blocks between two processes; `bench.profiler` measures links with it too."""

from bench.transport.blocks import filled
from bench.transport.measuring import Bench
from bench.transport.wire import Wire

__all__ = ["Bench", "Wire", "filled"]
