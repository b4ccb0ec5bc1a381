"""The peer of the gloo transport: one message per block, nothing beside the bytes."""

from __future__ import annotations

import torch

from kv_transfer.transports import BlockMove
from kv_transfer.transports.gloo_link import SOURCE_RANK, TARGET_RANK, GlooLink
from pdserve.kv_memory import KvMemory


def bare_gloo(link: GlooLink, memory: KvMemory, rank: int, moves: list[BlockMove]) -> None:
    """From and to the same places, and one answer at the end: no descriptors, no digests."""
    pool = torch.frombuffer(memory.data, dtype=torch.uint8).view(memory.num_blocks, memory.block_bytes)
    tags_from = moves[0].tag
    if rank == SOURCE_RANK:
        works = [link.send(pool[move.source_block], tags_from + i) for i, move in enumerate(moves)]
    else:
        works = [link.receive(pool[move.target_block], tags_from + i) for i, move in enumerate(moves)]
    answer = torch.zeros(1, dtype=torch.uint8)
    if rank == TARGET_RANK:
        for work in works:
            link.finish(work)
        link.finish(link.send(answer, tags_from + len(works)))
    else:
        link.finish(link.receive(answer, tags_from + len(works)))
