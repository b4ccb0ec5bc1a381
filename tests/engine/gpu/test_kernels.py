"""The Triton kernels against the reference backend, over random packed batches in a pool full of not-a-number."""

from __future__ import annotations

import importlib
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.attention import AttentionCall, ReferenceAttention
from engine.batch import StepBatch, pack
from engine.kv_pool import KvPool
from pdserve.ids import SequenceKey
from pdserve.kv_layout import KvLayout, LayerLayout
from scheduling.step import SequenceStep

pytestmark = pytest.mark.usefixtures("kernel_device")

SHAPES = [(4, 2, 16, 16), (3, 3, 24, 16), (5, 1, 10, 10), (20, 1, 16, 40)]  # H, K, Dk, Dv
CALLS: list[dict[str, Any]] = [{}, {"window": 19}, {"softcap": 5.0}, {"sinks": True}, {"window": 300, "sinks": True}]
SEQUENCES = [(0, 1), (63, 1), (300, 1), (255, 1), (256, 1), (0, 70), (61, 19), (5, 3), (270, 9)]  # start, new tokens
MAX_LEN = 1024
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


class Case:
    """Sequences with random queries and KV; two layers, of which the second is attended."""

    def __init__(
        self, device: torch.device, shape: tuple[int, int, int, int], dtype: str, block_size: int,
        sequences: list[tuple[int, int]], seed: int = 0,
    ) -> None:  # fmt: skip
        heads, kv_heads, key_size, value_size = shape
        generator, order = torch.Generator().manual_seed(seed), random.Random(seed)
        layers = (LayerLayout(1, 6, 2), LayerLayout(kv_heads, key_size, value_size))
        counts = [-(-(start + new) // block_size) for start, new in sequences]
        self.heads = [1, heads]
        self.pool = KvPool(KvLayout("m", dtype, block_size, layers), sum(counts) + 3, device=device)
        self.pool.data.fill_(float("nan"))
        free = order.sample(range(self.pool.num_blocks), self.pool.num_blocks)
        self.steps: list[SequenceStep] = []
        for index, ((start, new), count) in enumerate(zip(sequences, counts, strict=True)):
            blocks = [free.pop() for _ in range(count)]
            self.steps.append(SequenceStep(SequenceKey(str(index)), [0] * new, start, blocks, None))
            at = torch.arange(start)
            old = [torch.randn(start, kv_heads, size, generator=generator) for size in (key_size, value_size)]
            key, value = (part.to(device, self.pool.dtype) for part in old)
            self.pool.write(
                1, torch.tensor(blocks)[at // block_size].to(device), at.to(device) % block_size, key, value
            )
        rows = sum(new for _, new in sequences)

        def random_rows(count: int, size: int) -> Tensor:
            made = torch.randn(rows, count, size, generator=generator).to(device, self.pool.dtype)
            return made.transpose(0, 1)  # as a model has it: [heads, T, D], heads side by side in memory

        self.query = random_rows(heads, key_size)
        self.key, self.value = random_rows(kv_heads, key_size), random_rows(kv_heads, value_size)

    def pick(self, which: list[int]) -> tuple[StepBatch, Tensor, Tensor, Tensor]:
        """The batch of some sequences, in this order, with its queries, keys and values."""
        lengths = [len(step.token_ids) for step in self.steps]
        first = [sum(lengths[:index]) for index in range(len(lengths))]
        rows = torch.cat([torch.arange(first[i], first[i] + lengths[i]) for i in which]).to(self.query.device)
        steps = [self.steps[i] for i in which]
        batch = pack(steps, self.pool.layout.block_size, 1, self.pool.device)
        return batch, self.query[:, rows], self.key[:, rows], self.value[:, rows]


def make_call(case: Case, window: int | None = None, softcap: float | None = None, sinks: bool = False) -> Any:
    heads, size = case.query.shape[0], case.query.shape[2]
    logits = torch.linspace(-1, 2, heads).to(case.query) if sinks else None
    return AttentionCall(layer=1, scale=size**-0.5, window=window, softcap=softcap, sinks=logits)


def make_backend(case: Case) -> Any:
    """By name: where Triton is missing this file is still collected."""
    return importlib.import_module("engine.gpu.attention").TritonAttention(case.pool, case.heads, MAX_LEN)


def attend(backend: Any, case: Case, call: AttentionCall, which: list[int]) -> Tensor:
    """Write and attend; [T, H, Dv]."""
    batch, query, key, value = case.pick(which)
    backend.begin(batch)
    backend.write(1, key, value)
    out: Tensor = backend.attend(query, call)
    return out


def expected(case: Case, call: AttentionCall, which: list[int]) -> Tensor:
    batch, query, _, _ = case.pick(which)
    reference = ReferenceAttention(case.pool)
    reference.begin(batch)
    return reference.attend(query, call)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_give_the_reference(kernel_device: torch.device, shape: tuple[int, int, int, int]) -> None:
    """Prompts, chunks and decodes in one step; grouped heads, odd sizes, windows, softcap, sinks; KV written by us."""
    case = Case(kernel_device, shape, "float32", 16, SEQUENCES)
    chosen = [5, 0, 7, 2, 6, 3, 1, 4, 8] if shape == SHAPES[0] else [6, 0, 7, 2]
    backend = make_backend(case)
    for fields in CALLS if shape == SHAPES[0] else CALLS[-1:]:
        call = make_call(case, **fields)
        found = attend(backend, case, call, chosen)
        torch.testing.assert_close(found, expected(case, call, chosen), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "block_size"), [("float16", 1), ("float16", 24), ("bfloat16", 64)])
def test_sixteen_bits_and_other_blocks(kernel_device: torch.device, dtype: str, block_size: int) -> None:
    """Blocks that no tile divides, and that hold a tile; 16-bit KV."""
    if dtype == "bfloat16" and kernel_device.type == "cpu":
        pytest.skip("Triton 3.6 interprets products of bfloat16 as products of integers")
    case = Case(kernel_device, (4, 2, 32, 32), dtype, block_size, SEQUENCES[1:], seed=block_size)
    chosen = list(range(len(SEQUENCES) - 1))
    call = make_call(case)
    found = attend(make_backend(case), case, call, chosen)
    limit = TOLERANCE[case.pool.dtype]
    torch.testing.assert_close(found.float(), expected(case, call, chosen).float(), atol=limit, rtol=limit)


@pytest.mark.parametrize("seed", range(2))
def test_random_batches(kernel_device: torch.device, seed: int) -> None:
    """Lengths, order, window and block size by chance."""
    chance = random.Random(seed)
    sequences = [(chance.randrange(600), chance.choice([1, 1, chance.randint(2, 60)])) for _ in range(6)]
    case = Case(kernel_device, (6, 2, 16, 8), "float32", chance.choice([3, 16, 32]), sequences, seed)
    call = make_call(case, window=chance.choice([None, chance.randint(1, 400)]), sinks=chance.random() < 0.5)
    which = chance.sample(range(6), 6)
    found = attend(make_backend(case), case, call, which)
    torch.testing.assert_close(found, expected(case, call, which), atol=2e-5, rtol=1e-4)


def test_a_row_does_not_depend_on_its_company(kernel_device: torch.device) -> None:
    """The same bits alone and together: splits and tiles are at absolute positions."""
    case = Case(kernel_device, (4, 2, 16, 16), "float32", 16, SEQUENCES)
    backend, chosen = make_backend(case), [6, 0, 7, 2, 4]
    for fields in ({}, {"window": 19}):
        call = make_call(case, **fields)
        together, first = attend(backend, case, call, chosen), 0
        for index in chosen:
            last = first + len(case.steps[index].token_ids)
            assert torch.equal(attend(backend, case, call, [index]), together[first:last])
            first = last


def test_who_computes_a_split_changes_no_bit(kernel_device: torch.device) -> None:
    """The number of programs that share out decode's work is the card's; the numbers are not."""
    case = Case(kernel_device, (4, 2, 16, 16), "float32", 16, SEQUENCES[:5])
    backend, call, chosen = make_backend(case), make_call(case), [3, 0, 4, 2, 1]
    first = attend(backend, case, call, chosen)
    for count in (1, 8):
        backend._num_programs = count
        assert torch.equal(attend(backend, case, call, chosen), first)


def test_what_is_not_a_number_shows_and_stays_with_its_sequence(kernel_device: torch.device) -> None:
    """Not-a-number in a sequence's own KV reaches its output, where the sampler finds it; neighbours are untouched."""
    case = Case(kernel_device, (4, 2, 16, 16), "float32", 16, [(300, 1), (290, 1), (20, 5), (21, 5)])
    for sick in (0, 2):
        case.pool.key(1)[case.steps[sick].block_ids[0], :, 3] = float("nan")
    out = attend(make_backend(case), case, make_call(case), [0, 1, 2, 3])
    sick_rows = torch.tensor([True, False, *[True] * 5, *[False] * 5])
    assert torch.equal(out.isnan().flatten(1).all(1).cpu(), sick_rows)
    assert torch.equal(out.isfinite().flatten(1).all(1).cpu(), ~sick_rows)


def test_nothing_else_is_written(kernel_device: torch.device) -> None:
    """A step's keys and values land in their slots and nowhere else, bit for bit as KvPool.write puts them."""
    case = Case(kernel_device, (3, 3, 24, 16), "bfloat16", 16, SEQUENCES)
    before = case.pool.data.clone()
    chosen = list(range(len(SEQUENCES)))
    batch, _, key, value = case.pick(chosen)
    backend = make_backend(case)
    backend.begin(batch)
    backend.write(1, key, value)
    ours = case.pool.data.clone()
    case.pool.data.copy_(before)
    case.pool.write(1, batch.write_blocks, batch.write_slots, key.transpose(0, 1), value.transpose(0, 1))
    assert torch.equal(ours.view(torch.int16), case.pool.data.view(torch.int16))
