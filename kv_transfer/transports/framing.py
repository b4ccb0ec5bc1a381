"""How the blocks of one post are cut into frames, and a frame's payload into messages: the same on both ends.

    post     b0 b1 b2 b3 b4 b5 b6 b7 ...        what one credit covers
    frame    [b0 b1 b2 b3] [b4 b5 b6 b7] ...    one descriptor, one digest, one answer
    message  [b0] [b1 b2 b3] ...                one operation: the blocks of one tag, or a part of a large block

Blocks that lie one behind the other on both sides get one tag (`give_tags`, by the target, who knows both sides), and
travel as one message straight from pool to pool. The tags are in the credit: both ends agree on every size before a
byte moves.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from kv_transfer.frame import Descriptor, FrameKind
from kv_transfer.transports.interface import BlockMove, PairInfo

FRAME_BYTES = 8 << 20
"""At most, but for a single message: enough that a descriptor and its answer cost nothing beside it, little enough that
hashing the last one is soon done."""
MESSAGE_BYTES = 512 << 10
"""At most: smaller ones cost calls, larger ones leave the processor's caches."""
MAX_FRAME_BLOCKS = 1024
"""So that the questions about one frame fit in a packet (shared_memory)."""
MAX_DATA_TAG = 2**31 - 16
"""Data's tags are below it; gloo_link has those above for itself."""

Ids = npt.NDArray[np.int64]
Generations = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """Some neighbouring moves of a post, by columns."""

    tags: Ids
    indices: Ids
    sources: Ids
    generations: Generations
    targets: Ids

    def __len__(self) -> int:
        return len(self.tags)

    @property
    def tag(self) -> int:
        """Of its descriptor and its answer: its first block's."""
        return int(self.tags[0])

    def describe(self, pair: PairInfo, transfer_id: int) -> Descriptor:
        """What its descriptor must say; the payload's digest is left out."""
        return Descriptor(
            kind=FrameKind.BLOCKS, nonce=pair.nonce, epoch=pair.epoch, transfer_id=transfer_id, count=len(self),
            index=int(self.indices[0]), tag=self.tag, source_block=int(self.sources[0]),
            source_generation=int(self.generations[0]), length=len(self) * pair.block_bytes,
            blocks=identity_digest(self.indices, self.sources, self.generations),
        )  # fmt: skip


def identity_digest(indices: Ids, sources: Ids, generations: Generations) -> int:
    """xxh3_64 of which blocks these are, all of them."""
    columns = np.concatenate((indices, sources, generations.view(np.int64)))
    return int(xxhash.xxh3_64_intdigest(columns.data))


def give_tags(sources: Sequence[int], targets: Sequence[int], block_bytes: int, next_tag: Iterator[int]) -> list[int]:
    """A tag per move; neighbours on both sides that fit into one message share theirs."""
    most = min(MAX_FRAME_BLOCKS, max(1, MESSAGE_BYTES // block_bytes))
    tags: list[int] = []
    length = 0
    for i in range(len(sources)):
        length += 1
        if i == 0 or length > most or sources[i] != sources[i - 1] + 1 or targets[i] != targets[i - 1] + 1:
            tag, length = next(next_tag), 1
        tags.append(tag)
    return tags


def cut_frames(moves: Sequence[BlockMove], block_bytes: int) -> Iterator[Frame]:
    """The frames of a post, in order; none divides the blocks of a tag."""
    most = min(MAX_FRAME_BLOCKS, max(1, FRAME_BYTES // block_bytes))
    first = end = 0  # the frame begins at `first`; up to `end` no tag is divided
    for i in range(1, len(moves) + 1):
        if i < len(moves) and moves[i].tag == moves[i - 1].tag:
            continue
        if i - first > most and end > first:
            yield _frame(moves[first:end])
            first = end
        end = i
    if first < len(moves):
        yield _frame(moves[first:])


def _frame(moves: Sequence[BlockMove]) -> Frame:
    return Frame(
        np.array([move.tag for move in moves], np.int64),
        np.array([move.index for move in moves], np.int64),
        np.array([move.source_block for move in moves], np.int64),
        np.array([move.source_generation for move in moves], np.uint64),
        np.array([move.target_block for move in moves], np.int64),
    )


class Message(NamedTuple):
    """One operation's share of a frame."""

    tag: int
    start: int  # byte in this end's pool
    length: int  # bytes


def cut_messages(tags: Ids, block_ids: Ids, block_bytes: int) -> list[Message]:
    """The messages of a frame whose blocks are these here, in order.

    A large block's parts are equal but for the last, and share its tag.
    """
    bounds = np.array(_bounds(np.diff(tags) != 0))
    firsts, lengths = bounds[:-1], np.diff(bounds) * block_bytes
    columns = (tags[firsts], block_ids[firsts] * block_bytes, lengths)
    whole = [Message(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    if block_bytes <= MESSAGE_BYTES:
        return whole
    part = -(-block_bytes // -(-block_bytes // MESSAGE_BYTES))
    return [
        Message(tag, start + offset, min(part, length - offset))
        for tag, start, length in whole
        for offset in range(0, length, part)
    ]


def payload_digest(pool: memoryview, messages: list[Message]) -> int:
    """xxh3_64 of a frame's payload; lets other threads run meanwhile."""
    hashed = xxhash.xxh3_64()
    for _, start, length in messages:
        hashed.update(pool[start : start + length])
    return hashed.intdigest()


def are_neighbours(block_ids: Ids, tags: Ids) -> bool:
    """Do the blocks of each tag lie one behind the other?"""
    return bool(((np.diff(block_ids) == 1) | (np.diff(tags) != 0)).all())


def runs(sources: Ids, targets: Ids) -> Iterator[tuple[int, int]]:
    """Half-open ranges of positions whose sources and targets are both consecutive, in order."""
    return itertools.pairwise(_bounds((np.diff(sources) != 1) | (np.diff(targets) != 1)))


def _bounds(breaks: npt.NDArray[np.bool_]) -> list[int]:
    """Where runs begin and end, given whether each element but the first begins one."""
    return [0, *(np.flatnonzero(breaks) + 1).tolist(), len(breaks) + 1]
