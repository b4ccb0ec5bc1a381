"""What transports ask of blocks, generations and tags before they believe them."""

from __future__ import annotations

from collections.abc import Sequence

from kv_transfer.transports.framing import MAX_DATA_TAG, Frame, Generations, Ids, are_neighbours
from kv_transfer.transports.interface import BlockMove
from pdserve.errors import InvariantViolation, TransferCorrupt


class StaleBlock(TransferCorrupt):
    """The generation had moved on."""


def check_sources(frame: Frame, num_blocks: int) -> None:
    """TransferCorrupt unless every source block of the frame is in a pool of so many."""
    outside = (frame.sources < 0) | (frame.sources >= num_blocks)
    if outside.any():
        raise TransferCorrupt(f"source block {frame.sources[outside.argmax()]:,} of a pool of {num_blocks:,}")


def check_generations(frame: Frame, generations: Generations | None) -> None:
    """StaleBlock unless every source block of the frame is of the generation that was announced."""
    assert generations is not None
    actual = generations[frame.sources]
    wrong = actual != frame.generations
    if wrong.any():
        i = wrong.argmax()
        raise StaleBlock(
            f"source block {frame.sources[i]:,} is of generation {actual[i]:,}, not {frame.generations[i]:,}"
        )


def check_credited(sources: Ids, tags: Ids, num_blocks: int) -> None:
    """InvariantViolation unless these blocks are in the pool, their tags data's, and those of one tag neighbours."""
    if (tags % 2).any() or tags.min() < 0 or tags.max() >= MAX_DATA_TAG:
        raise InvariantViolation(f"credited tag is odd or past {MAX_DATA_TAG:,}")
    if sources.min() < 0 or sources.max() >= num_blocks:
        raise InvariantViolation(f"credited block is not one of {num_blocks:,}")
    if not are_neighbours(sources, tags):
        raise InvariantViolation("blocks credited under one tag are not neighbours")


def check_tags(moves: Sequence[BlockMove], next_tag: int, num_blocks: int) -> int:
    """The next tag that nobody used; InvariantViolation when one was, or when one names blocks far apart."""
    last = BlockMove(-1, next_tag - 2, -1, 0, -1)
    for move in moves:
        assert 0 <= move.target_block < num_blocks
        shared = last.index >= 0 and move.tag == last.tag
        if move.tag % 2 or not (shared or last.tag < move.tag < MAX_DATA_TAG):
            raise InvariantViolation(f"tag {move.tag:,} is odd, was used, or is past {MAX_DATA_TAG:,}")
        if shared and move.target_block != last.target_block + 1:
            raise InvariantViolation(f"tag {move.tag:,} is shared by blocks that are not neighbours")
        last = move
    return last.tag + 2
