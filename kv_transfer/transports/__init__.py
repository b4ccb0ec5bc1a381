"""Ways to move KV blocks between two pools, behind one interface.

GlooTransport is not listed here: its module imports torch, which a worker with shared memory can start without.
"""

from kv_transfer.transports.faults import Faults
from kv_transfer.transports.in_process import InProcessTransport
from kv_transfer.transports.interface import (
    BlockMove,
    ChannelStats,
    PairInfo,
    Receipt,
    Rendezvous,
    SourceChannel,
    TargetChannel,
    Transport,
)
from kv_transfer.transports.shared_memory import SharedMemoryTransport

__all__ = [
    "BlockMove",
    "ChannelStats",
    "Faults",
    "InProcessTransport",
    "PairInfo",
    "Receipt",
    "Rendezvous",
    "SharedMemoryTransport",
    "SourceChannel",
    "TargetChannel",
    "Transport",
]
