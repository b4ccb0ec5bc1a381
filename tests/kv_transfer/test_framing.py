"""How posts are cut: nothing lost, nothing doubled, and both ends alike."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from kv_transfer.transports.framing import (
    FRAME_BYTES,
    MAX_FRAME_BLOCKS,
    MESSAGE_BYTES,
    are_neighbours,
    cut_frames,
    cut_messages,
    give_tags,
    identity_digest,
    runs,
)
from kv_transfer.transports.interface import BlockMove, PairInfo

SIZES = [8, 24, 4096, 65_536, 100_000, 1_835_008, 1 << 20, (1 << 20) + 8, 4 << 20, 5 << 20]


def moves_of(count: int, block_bytes: int = 64, jumps: float = 1.0) -> list[BlockMove]:
    """Moves tagged as a target does; `jumps` is the share of blocks that do not follow the one before."""
    rng = random.Random(count)
    sources, targets = [0], [5]
    while len(sources) < count:
        jump = 7 if rng.random() < jumps else 1
        sources.append(sources[-1] + (jump if rng.random() < 0.5 else 1))
        targets.append(targets[-1] + jump)
    tags = give_tags(sources, targets, block_bytes, itertools.count(2, 2))
    return [BlockMove(i, tags[i], sources[i], 7 + i, targets[i]) for i in range(count)]


@pytest.mark.parametrize("block_bytes", SIZES)
@pytest.mark.parametrize("jumps", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 1025])
def test_frames_are_the_moves_in_order(count: int, jumps: float, block_bytes: int) -> None:
    """Every column; no frame beyond its bounds, none that divides a tag."""
    moves = moves_of(count, block_bytes, jumps)
    frames = list(cut_frames(moves, block_bytes))
    back = [
        BlockMove(*(int(number) for number in row))
        for frame in frames
        for row in zip(frame.indices, frame.tags, frame.sources, frame.generations, frame.targets, strict=True)
    ]
    assert back == moves
    assert all(len(f) * block_bytes <= max(FRAME_BYTES, block_bytes) and len(f) <= MAX_FRAME_BLOCKS for f in frames)
    for before, after in itertools.pairwise(frames):
        assert before.tags[-1] != after.tags[0]


@pytest.mark.parametrize("block_bytes", SIZES)
@pytest.mark.parametrize("jumps", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("count", [1, 2, 64])
def test_messages_cover_the_frame_once(count: int, jumps: float, block_bytes: int) -> None:
    """In order, without gap; the blocks of one tag, or parts of a large one."""
    for frame in cut_frames(moves_of(count, block_bytes, jumps), block_bytes):
        position = 0
        for message in cut_messages(frame.tags, frame.targets, block_bytes):
            block, offset = divmod(position, block_bytes)
            assert message.start == frame.targets[block] * block_bytes + offset
            assert 0 < message.length <= MESSAGE_BYTES
            assert message.tag == frame.tags[block]
            position += message.length
            assert message.tag == frame.tags[(position - 1) // block_bytes]
        assert position == len(frame) * block_bytes


def test_neighbours_on_both_sides_share_a_tag() -> None:
    """Up to the size of a message; a jump on either side ends it; tags go on over calls."""
    tags = itertools.count(2, 2)
    assert give_tags([0, 1, 2, 4, 5], [4, 5, 7, 8, 9], 64, tags) == [2, 2, 4, 6, 6]
    assert give_tags([6, 7, 8], [3, 4, 5], MESSAGE_BYTES // 2, tags) == [8, 8, 10]
    assert give_tags([9, 8, 7], [2, 1, 0], 64, tags) == [12, 14, 16]
    assert give_tags([1, 2], [1, 2], MESSAGE_BYTES + 8, tags) == [18, 20]


def test_blocks_of_one_tag_must_be_neighbours() -> None:
    """What a sender looks at before it sends them as one."""
    tags = np.array([2, 2, 4, 4])
    assert are_neighbours(np.array([5, 6, 1, 2]), tags)
    assert not are_neighbours(np.array([5, 6, 1, 3]), tags)


def test_the_identity_covers_every_block() -> None:
    """Another index, source or generation anywhere in the frame is another frame; the target block is not told."""
    pair = PairInfo(b"s" * 16, b"t" * 16, 1, b"n" * 16, 64)

    def described(moves: list[BlockMove]) -> int:
        (frame,) = cut_frames(moves, 64)
        descriptor = frame.describe(pair, 5)
        assert (descriptor.count, descriptor.length, descriptor.transfer_id) == (4, 256, 5)
        return descriptor.blocks

    moves = moves_of(4)
    for other in (
        replace(moves[3], index=9),
        replace(moves[3], source_block=moves[3].source_block + 1),
        replace(moves[3], source_generation=moves[3].source_generation + 1),
    ):
        assert described([*moves[:3], other]) != described(moves)
    assert described([*moves[:3], replace(moves[3], target_block=1)]) == described(moves)
    ids = np.arange(3)
    assert identity_digest(ids, ids, ids.astype(np.uint64)) != identity_digest(ids, ids[::-1].copy(), ids.view("u8"))


def test_runs_are_consecutive_on_both_sides() -> None:
    """A run ends where either side jumps."""
    sources = np.array([0, 1, 2, 4, 5, 6, 7])
    targets = np.array([4, 5, 7, 8, 9, 10, 11])
    assert list(runs(sources, targets)) == [(0, 2), (2, 3), (3, 7)]
    assert list(runs(sources[:1], targets[:1])) == [(0, 1)]


def test_runs_over_random_blocks() -> None:
    """Nothing lost, nothing doubled, every run as long as it can be."""
    rng = np.random.default_rng(5)
    for _ in range(200):
        count = int(rng.integers(1, 12))
        sources, targets = rng.integers(0, 4, count), rng.integers(0, 4, count)
        found = list(runs(sources, targets))
        assert [i for first, end in found for i in range(first, end)] == list(range(count))
        for first, end in found:
            assert (np.diff(sources[first:end]) == 1).all() and (np.diff(targets[first:end]) == 1).all()
        for (first, end), (_, later) in itertools.pairwise(found):
            longer = (np.diff(sources[first:later]) == 1) & (np.diff(targets[first:later]) == 1)
            assert later > end and not longer.all()
