"""The native kernels against the reference, over shuffled blocks whose unwritten slots are not-a-number."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import engine.native.build
from engine.attention import AttentionCall, ReferenceAttention
from engine.attention.native import NativeAttention
from engine.batch import pack
from engine.kv_pool import TORCH_DTYPES, KvPool
from engine.native.library import NativeLibrary
from pdserve.ids import SequenceKey
from pdserve.kv_layout import KvLayout, LayerLayout
from scheduling.step import SequenceStep

SHAPES = [  # H, K, Dk, Dv
    (4, 2, 16, 16), (6, 6, 24, 16), (5, 1, 10, 10), (20, 1, 16, 48), (12, 4, 64, 64), (34, 2, 8, 8), (16, 8, 128, 128),
    (8, 4, 64, 64), (4, 1, 80, 80), (3, 3, 192, 128), (2, 1, 256, 256), (7, 1, 33, 65), (16, 1, 96, 96),
]  # fmt: skip
CALLS: list[dict[str, Any]] = [
    {},
    {"window": 19},
    {"softcap": 5.0},
    {"sinks": True},
    {"window": 1},
    {"window": 70, "sinks": True, "softcap": 2.0},
]
SEQUENCES = [(0, 1), (40, 1), (63, 1), (64, 1), (150, 1), (0, 130), (61, 70), (5, 3), (200, 17), (0, 300), (513, 140)]
BLOCK_SIZES = [1, 3, 16, 32, 256]
KINDS = ["float32", "bfloat16", "bfloat16 portable"]


@pytest.fixture(scope="module", params=[1, 3], ids=["1 thread", "3 threads"])
def library(request: pytest.FixtureRequest) -> Iterator[NativeLibrary]:
    try:
        path = engine.native.build.build()
    except RuntimeError as error:
        pytest.skip(str(error))
    library = NativeLibrary(path, request.param)
    yield library
    library.close()


class Case:
    """Sequences (start, new tokens) with queries and KV drawn from `seed`, in a pool of shuffled blocks."""

    def __init__(self, shape: tuple[int, ...], kind: str, block_size: int, sequences: Any, seed: int = 1) -> None:
        heads, kv_heads, key_size, value_size = shape
        self.portable = kind.endswith("portable")
        dtype = kind.split(maxsplit=1)[0]
        generator = torch.Generator().manual_seed(seed)
        layers = (LayerLayout(1, 8, 16), LayerLayout(kv_heads, key_size, value_size))
        counts = [-(-(start + new) // block_size) for start, new in sequences]
        self.pool = KvPool(KvLayout("m", dtype, block_size, layers), sum(counts) + 3)
        self.wide = KvPool(KvLayout("m", "float32", block_size, layers), sum(counts) + 3)
        self.pool.data.fill_(float("nan"))
        free = list(range(sum(counts) + 3))
        random.Random(seed).shuffle(free)
        self.steps, self.queries = [], []
        for index, ((start, new), count) in enumerate(zip(sequences, counts, strict=True)):
            blocks = [free.pop() for _ in range(count)]
            self.steps.append(SequenceStep(SequenceKey(str(index)), [0] * new, start, blocks, None))
            key = torch.randn(start + new, kv_heads, key_size, generator=generator).to(self.pool.dtype)
            value = torch.randn(start + new, kv_heads, value_size, generator=generator).to(self.pool.dtype)
            at = torch.arange(start + new)
            table = torch.tensor(blocks)[at // block_size]
            self.pool.write(1, table, at % block_size, key, value)
            self.wide.write(1, table, at % block_size, key.float(), value.float())
            self.queries.append(torch.randn(start + new, heads, key_size, generator=generator).to(self.pool.dtype))

    def chunk(self, index: int, first: int, last: int) -> SequenceStep:
        """Tokens [first, last) of a sequence as a step of its own."""
        return SequenceStep(SequenceKey(str(index)), [0] * (last - first), first, self.steps[index].block_ids, None)

    def attend(self, steps: list[SequenceStep], call: AttentionCall, library: NativeLibrary | None) -> list[Tensor]:
        """[new, H, Dv] of each step, by the native kernels or, without a library, by the reference in float32."""
        batch = pack(steps, self.pool.layout.block_size, 32, torch.device("cpu"))
        query = torch.cat([self.queries[int(step.key.request_id)][step.start : step.end] for step in steps])
        spare = query.new_full((batch.input_ids.shape[1] - len(query), *query.shape[1:]), float("nan"))
        query = torch.cat([query, spare]).transpose(0, 1)
        backend: Any
        if library is None:
            backend, query = ReferenceAttention(self.wide), query.float()
        else:
            backend = NativeAttention(self.pool, library, self.portable)
        backend.begin(batch)
        out: Tensor = backend.attend(query, call)
        assert out.dtype == query.dtype and not out[batch.num_tokens :].any()
        return list(torch.split(out[: batch.num_tokens], [len(step.token_ids) for step in steps]))


def _call(shape: tuple[int, ...], fields: dict[str, Any]) -> AttentionCall:
    sinks = torch.linspace(-1, 2, shape[0]) if fields.get("sinks") else None
    return AttentionCall(1, shape[2] ** -0.5, fields.get("window"), fields.get("softcap"), sinks)


def _assert_same_bits(found: Tensor, expected: Tensor, what: object) -> None:
    as_ints = {2: torch.int16, 4: torch.int32}[found.element_size()]
    assert torch.equal(found.contiguous().view(as_ints), expected.contiguous().view(as_ints)), what


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_native_attention_gives_what_the_reference_gives(
    library: NativeLibrary, shape: tuple[int, ...], kind: str
) -> None:
    """Prompts, chunks and decodes in one step; grouped heads, windows, softcap, sinks; unwritten slots never matter."""
    atol, rtol = (2e-5, 1e-4) if kind == "float32" else (2e-2, 1e-2)
    for index, fields in enumerate(CALLS):
        case = Case(shape, kind, BLOCK_SIZES[(index + shape[0]) % len(BLOCK_SIZES)], SEQUENCES, seed=index)
        steps = random.Random(index).sample(case.steps, len(case.steps))
        call = _call(shape, fields)
        for step, found, expected in zip(
            steps, case.attend(steps, call, library), case.attend(steps, call, None), strict=True
        ):
            torch.testing.assert_close(
                found.float(), expected, atol=atol, rtol=rtol, msg=f"{fields} {step.start}-{step.end}"
            )


@pytest.mark.parametrize("kind", ["float32", "bfloat16 portable"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_query_does_not_depend_on_chunks_company_or_block_size(
    library: NativeLibrary, shape: tuple[int, ...], kind: str
) -> None:
    """The same bits however a sequence is cut, whoever is beside it, whatever the blocks' size and the threads."""
    rng = random.Random(str(shape))
    for fields in CALLS:
        call = _call(shape, fields)
        lengths = [(0, rng.randrange(1, 400)), (0, rng.randrange(60, 70)), (0, rng.randrange(120, 300))]
        plain = Case(shape, kind, 16, lengths)
        whole = [plain.attend([step], call, library)[0] for step in plain.steps]
        for block_size in rng.sample(BLOCK_SIZES, 2):
            case = Case(shape, kind, block_size, lengths)
            steps = []
            for index, (_, length) in enumerate(lengths):
                cuts = sorted({0, length, *(rng.randrange(length) for _ in range(rng.randrange(6))), length - 1})
                steps += [case.chunk(index, *cut) for cut in pairwise(cuts)]
            rng.shuffle(steps)
            for step, found in zip(steps, case.attend(steps, call, library), strict=True):
                expected = whole[int(step.key.request_id)][step.start : step.end]
                _assert_same_bits(found, expected, (fields, block_size, step.start, step.end))


@pytest.mark.parametrize("kind", KINDS)
def test_another_sequences_not_a_number_stays_there(library: NativeLibrary, kind: str) -> None:
    """A broken neighbour changes no bit of others, and cannot hide its own state."""
    shape = (16, 8, 128, 128)
    case = Case(shape, kind, 16, [(70, 1), (20, 1), (150, 1), (0, 90)])
    before = case.attend(case.steps, _call(shape, {}), library)
    for broken in (2, 1):
        case.pool.data[torch.tensor(case.steps[broken].block_ids)] = float("nan")
        after = case.attend(case.steps, _call(shape, {}), library)
        for index in (0, 3):
            _assert_same_bits(after[index], before[index], index)
        assert after[broken].isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_large_scores_and_rows_that_see_one_position(library: NativeLibrary, kind: str) -> None:
    """Scores of some thousands, where most weights underflow, still give the definition's numbers."""
    shape = (4, 2, 64, 64)
    case = Case(shape, kind, 16, [(0, 200), (300, 1)])
    call = AttentionCall(1, 30.0)
    for found, expected in zip(
        case.attend(case.steps, call, library), case.attend(case.steps, call, None), strict=True
    ):
        assert found.isfinite().all()
        torch.testing.assert_close(found.float(), expected, atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_written_keys_and_values_lie_where_the_pool_says(library: NativeLibrary, dtype: str) -> None:
    """Strided rows go to their slots; every other slot keeps what it held."""
    generator = torch.Generator().manual_seed(0)
    layers = (LayerLayout(2, 8, 8), LayerLayout(3, 10, 6))
    pools = [KvPool(KvLayout("m", dtype, 4, layers), 5) for _ in range(2)]
    for pool in pools:
        pool.data.fill_(7)
    rows = torch.randn(6, 3, 40, generator=generator).to(TORCH_DTYPES[dtype])
    key, value = rows[..., 3:13], rows[..., 20:26]
    blocks, slots = torch.tensor([4, 4, 0, 2, 2, 1]), torch.tensor([3, 1, 0, 2, 0, 3])
    pools[0].write(1, blocks, slots, key, value)
    NativeAttention(pools[1], library).write(1, blocks, slots, key, value)
    assert torch.equal(pools[0].data, pools[1].data)
