"""What both processes must know alike: the pools, which block goes where, and the transport by its name."""

from __future__ import annotations

import itertools
import random
import secrets

from kv_transfer.transports import BlockMove, PairInfo, SharedMemoryTransport, Transport
from kv_transfer.transports.framing import give_tags
from kv_transfer.transports.gloo import GlooTransport
from pdserve.kv_memory import KvMemory

TIMEOUT_S = 30.0


def transport_named(name: str) -> Transport:
    digests = name.endswith("digest")
    if name.startswith("gloo"):
        return GlooTransport(digests=digests, timeout_s=TIMEOUT_S)
    return SharedMemoryTransport(digests=digests, timeout_s=TIMEOUT_S)


def pair_info(block_bytes: int) -> PairInfo:
    return PairInfo(b"s" * 16, b"t" * 16, 1, b"n" * 16, block_bytes)


def filled(num_blocks: int, block_bytes: int) -> KvMemory:
    """A pool whose pages are all there."""
    memory = KvMemory(num_blocks, block_bytes)
    memory.data[:] = secrets.token_bytes(1 << 16) * (len(memory.data) >> 16)
    return memory


def moves_between(num_blocks: int, block_bytes: int, tags_from: int, scattered: bool) -> list[BlockMove]:
    """Every block of one pool to a place in the other, the same on both sides for the same arguments."""
    sources = list(range(num_blocks))
    targets = list(range(num_blocks))
    if scattered:
        random.Random(tags_from).shuffle(sources)
        random.Random(tags_from + 1).shuffle(targets)
    tags = give_tags(sources, targets, block_bytes, itertools.count(tags_from, 2))
    return [BlockMove(i, tag, s, 0, t) for i, (tag, s, t) in enumerate(zip(tags, sources, targets, strict=True))]
