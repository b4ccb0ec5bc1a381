"""Packing: what is kept between steps changes nothing."""

from __future__ import annotations

import random
from dataclasses import fields

import torch

from engine.batch import StepBatch, StepPacker, pack
from pdserve.ids import SequenceKey
from pdserve.sampling import SamplingParams
from scheduling.step import SampleRequest, SequenceStep

CPU = torch.device("cpu")
REQUEST = SampleRequest(SamplingParams(max_tokens=9), [1, 2], 2)


def same(one: StepBatch, other: StepBatch, block_size: int) -> None:
    """Equal in everything that a pass may read: of the block tables, what holds positions."""
    for name in (field.name for field in fields(StepBatch) if field.name != "block_tables"):
        left, right = getattr(one, name), getattr(other, name)
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right, name
    for row, end in enumerate(one.ends):
        count = -(-end // block_size)
        assert one.block_tables[row, :count].tolist() == other.block_tables[row, :count].tolist()
        own = set(one.block_tables[row, :count].tolist())
        assert set(one.block_tables[row].tolist()) <= own | set(other.block_tables[row].tolist())


def fresh(steps: list[SequenceStep], block_size: int, multiple: int) -> StepBatch:
    """The same steps, packed by one who knows nothing of earlier ones."""
    copies = [SequenceStep(s.key, list(s.token_ids), s.start, list(s.block_ids), s.sample) for s in steps]
    return pack(copies, block_size, multiple, CPU)


def test_steps_one_after_the_other_equal_each_packed_alone() -> None:
    """Sequences join, leave, change places, grow, are computed in chunks; with padding and without."""
    for seed in range(30):
        rng = random.Random(seed)
        size, multiple = rng.choice([1, 4, 16]), rng.choice([1, 32])
        packer, blocks = StepPacker(size, multiple, CPU), iter(rng.sample(range(100_000), 100_000))
        live: list[SequenceStep] = []
        for turn in range(40):
            for step in live:
                step.start = step.end
            live = [step for step in live if rng.random() > 0.05]
            while len(live) < 2 or rng.random() < 0.2:
                live.append(SequenceStep(SequenceKey(f"{turn}.{len(live)}"), [], 0, [], None))
            if rng.random() < 0.1:
                rng.shuffle(live)
            for step in live:
                count = 1 if step.start and rng.random() < 0.98 else rng.randint(1, 40)
                step.token_ids = [rng.randrange(1000) for _ in range(count)]
                step.sample = REQUEST if rng.random() < 0.9 else None
                while len(step.block_ids) * size < step.end + rng.choice([0, 0, size]):
                    step.block_ids.append(next(blocks))  # type: ignore[attr-defined]
            same(packer.pack(live), fresh(live, size, multiple), size)


def test_rows_of_a_mixed_step() -> None:
    """A chunk of a prompt beside a decode: positions, slots, blocks that begin, rows that sample."""
    chunk = SequenceStep(SequenceKey("a"), [5, 6, 7], 2, [9, 4], None)
    decode = SequenceStep(SequenceKey("b"), [8], 4, [3, 1], REQUEST)
    batch = pack([chunk, decode], 4, 8, CPU)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 0, 0, 0, 0]]
    assert batch.positions.tolist() == [[2, 3, 4, 4, 0, 0, 0, 0]]
    assert (batch.write_blocks.tolist(), batch.write_slots.tolist()) == ([9, 9, 4, 1], [2, 3, 0, 0])
    assert (batch.new_blocks.tolist(), batch.sample_rows.tolist()) == ([4, 1], [3] + [0] * 7)
    assert (batch.starts, batch.ends, batch.num_samples) == ([2, 4], [5, 5], 1)


def test_blocks_that_are_filled_at_once_are_not_to_be_cleared() -> None:
    """A block of which a part stays unwritten is, in a prompt and in a decode step."""
    prompt = SequenceStep(SequenceKey("a"), list(range(9)), 4, [9, 4, 7, 2], None)  # positions 4 to 12, blocks of 4
    assert pack([prompt], 4, 1, CPU).new_blocks.tolist() == [2]
    decodes = [SequenceStep(SequenceKey(name), [8], start, [3, 1], REQUEST) for name, start in (("b", 4), ("c", 5))]
    assert pack(decodes, 4, 1, CPU).new_blocks.tolist() == [1]
    assert pack([SequenceStep(SequenceKey("d"), [8], 1, [3, 1], REQUEST)], 1, 1, CPU).new_blocks.tolist() == []


def test_a_steps_memory_is_used_again_only_for_the_same_shape() -> None:
    """Fewer rows that sample: a buffer of its own, so no padding holds an old row."""
    packer = StepPacker(4, 32, CPU)
    steps = [SequenceStep(SequenceKey(str(i)), [i + 1], 4, [2 * i, 2 * i + 1], REQUEST) for i in range(3)]
    first = packer.pack(steps)
    assert packer.pack(steps).input_ids.data_ptr() == first.input_ids.data_ptr()
    steps[0].sample = None
    assert packer.pack(steps).sample_rows.tolist() == [1, 2] + [0] * 30
