"""Both backends against plain attention written out, over shuffled blocks; and that the tiled one is invariant."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from engine.attention import AttentionCall, ReferenceAttention, TiledAttention
from engine.attention.query_tiles import KEY_TILE, MIN_ROWS
from engine.batch import pack
from engine.kv_pool import KvPool
from pdserve.ids import SequenceKey
from pdserve.kv_layout import KvLayout, LayerLayout
from scheduling.step import SequenceStep

SHAPES = [(4, 2, 16, 16), (6, 6, 24, 16), (5, 1, 10, 10), (20, 1, 16, 16), (12, 4, 64, 64), (34, 2, 8, 8)]
CALLS: list[dict[str, Any]] = [{}, {"window": 19}, {"softcap": 5.0}, {"sinks": True}, {"window": 70, "sinks": True}]
SEQUENCES = [(0, 1), (40, 1), (63, 1), (64, 1), (150, 1), (0, 130), (61, 70), (5, 3), (200, 17)]  # start, new tokens


def _exact(query: Tensor, key: Tensor, value: Tensor, start: int, call: AttentionCall) -> Tensor:
    """The definition, one query at a time over the keys that it sees, in float64."""
    share = query.shape[0] // key.shape[0]
    keys, values = key.double().repeat_interleave(share, 0), value.double().repeat_interleave(share, 0)
    sink = torch.zeros(query.shape[0], 1) if call.sinks is None else call.sinks[:, None].double().exp()
    rows = []
    for row in range(query.shape[1]):
        at = start + row
        seen = slice(0 if call.window is None else max(0, at - call.window + 1), at + 1)
        scores = torch.einsum("hd,hnd->hn", query[:, row].double(), keys[:, seen]) * call.scale
        if call.softcap is not None:
            scores = call.softcap * torch.tanh(scores / call.softcap)
        weights = scores.exp()
        rows.append(torch.einsum("hn,hnd->hd", weights / (weights.sum(-1, keepdim=True) + sink), values[:, seen]))
    return torch.stack(rows, 1)


class _Case:
    """Sequences with random queries and KV, written into a pool whose other slots are not-a-number."""

    def __init__(self, shape: tuple[int, int, int, int], block_size: int, sequences: list[tuple[int, int]]) -> None:
        heads, kv_heads, key_size, value_size = shape
        generator = torch.Generator().manual_seed(1)
        facts = LayerLayout(kv_heads, key_size, value_size)
        layout = KvLayout("m", "float32", block_size, (LayerLayout(kv_heads, key_size, value_size), facts))
        counts = [-(-(start + new) // block_size) for start, new in sequences]
        self.pool = KvPool(layout, sum(counts) + 3)
        self.pool.data.fill_(float("nan"))
        free = torch.randperm(self.pool.num_blocks).tolist()
        self.steps, self.kv, self.queries = [], [], []
        for index, ((start, new), count) in enumerate(zip(sequences, counts, strict=True)):
            blocks = [free.pop() for _ in range(count)]
            self.pool.clear(torch.tensor(blocks))
            self.steps.append(SequenceStep(SequenceKey(str(index)), [0] * new, start, blocks, None))
            key = torch.randn(kv_heads, start + new, key_size, generator=generator)
            value = torch.randn(kv_heads, start + new, value_size, generator=generator)
            at = torch.arange(start + new)
            table = torch.tensor(blocks)[at // block_size]
            self.pool.write(1, table, at % block_size, key.transpose(0, 1), value.transpose(0, 1))
            self.kv.append((key, value))
            self.queries.append(torch.randn(heads, new, key_size, generator=generator))

    def attend(self, backend: Any, call: AttentionCall, which: list[int], row_multiple: int = 32) -> list[Tensor]:
        """[H, new, Dv] of each chosen sequence."""
        batch = pack([self.steps[i] for i in which], self.pool.layout.block_size, row_multiple, torch.device("cpu"))
        query = torch.cat([self.queries[i] for i in which], 1)
        spare = query.new_zeros(query.shape[0], batch.input_ids.shape[1] - query.shape[1], query.shape[2])
        backend.begin(batch)
        out = backend.attend(torch.cat([query, spare], 1), call)
        assert out.isfinite().all()
        lengths = [self.queries[i].shape[1] for i in which]
        return [part.transpose(0, 1) for part in torch.split(out[: sum(lengths)], lengths)]


def _call(
    heads: int, key_size: int, window: int | None = None, softcap: float | None = None, sinks: bool = False
) -> Any:
    logits = torch.linspace(-1, 2, heads) if sinks else None
    return AttentionCall(layer=1, scale=key_size**-0.5, window=window, softcap=softcap, sinks=logits)


@pytest.mark.parametrize("backend", [ReferenceAttention, TiledAttention])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backends_give_exact_attention(backend: Any, shape: tuple[int, int, int, int]) -> None:
    """Prompts, chunks and decodes in one step; grouped heads, windows, softcap, sinks; unwritten slots never matter."""
    case = _Case(shape, block_size=16, sequences=SEQUENCES)
    chosen = [5, 0, 7, 2, 6, 3, 1, 4, 8]
    for fields in CALLS:
        call = _call(shape[0], shape[2], **fields)
        found = case.attend(backend(case.pool), call, chosen)
        for index, out in zip(chosen, found, strict=True):
            expected = _exact(case.queries[index], *case.kv[index], case.steps[index].start, call)
            torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiled_attention_does_not_depend_on_company_or_block_size(shape: tuple[int, int, int, int]) -> None:
    """The same bits alone and together, in any order, for blocks of 1, 24 and 64."""
    for fields in CALLS:
        call = _call(shape[0], shape[2], **fields)
        case = _Case(shape, 16, SEQUENCES)
        alone = [case.attend(TiledAttention(case.pool), call, [i])[0] for i in range(len(SEQUENCES))]
        for block_size, order in ((16, [8, 4, 1, 3, 6, 2, 7, 0, 5]), (1, [5, 4]), (24, [6, 1, 8]), (64, [0, 3, 5])):
            other = _Case(shape, block_size, SEQUENCES)
            for index, out in zip(order, other.attend(TiledAttention(other.pool), call, order), strict=True):
                assert torch.equal(out, alone[index]), (fields, block_size, SEQUENCES[index])


def test_a_query_does_not_depend_on_its_chunk() -> None:
    """Each token computed on its own, as decode does, has the bits that the whole prompt gave it."""
    case = _Case((4, 2, 16, 16), 16, [(0, 130)])
    call = _call(4, 16, window=50)
    whole = case.attend(TiledAttention(case.pool), call, [0])[0]
    queries, blocks = case.queries[0], case.steps[0].block_ids
    for first, last in ((0, 1), (64, 65), (129, 130), (60, 75), (1, 130)):
        case.steps[0] = SequenceStep(SequenceKey("0"), [0] * (last - first), first, blocks, None)
        case.queries[0] = queries[:, first:last]
        assert torch.equal(case.attend(TiledAttention(case.pool), call, [0])[0], whole[:, first:last])


def test_another_sequences_not_a_number_stays_there() -> None:
    """A broken neighbour, longer and shorter, changes no bit."""
    case = _Case((4, 2, 16, 16), 16, [(70, 1), (20, 1), (150, 1), (0, 40)])
    call = _call(4, 16)
    before = case.attend(TiledAttention(case.pool), call, [0, 1, 2, 3])
    for broken in (2, 1):
        case.pool.data[torch.tensor(case.steps[broken].block_ids)] = float("nan")
        query = case.queries[broken]
        batch = pack(case.steps, 16, 32, torch.device("cpu"))
        backend = TiledAttention(case.pool)
        backend.begin(batch)
        rows = torch.cat([*case.queries, query.new_zeros(4, batch.input_ids.shape[1] - 43, 16)], 1)
        after = torch.split(backend.attend(rows, call)[:43], [1, 1, 1, 40])
        for index in (0, 3):
            assert torch.equal(after[index].transpose(0, 1), before[index])
        assert after[broken].isnan().all()


@pytest.mark.parametrize("size", [4, 8, 10, 22, 24, 64, 80, 96, 128, 192, 256])
def test_a_product_in_a_batch_does_not_depend_on_how_many_there_are(size: int) -> None:
    """What tiled attention trusts of this machine's library: one shape, one result, for any count and place."""
    generator = torch.Generator().manual_seed(size)
    key = torch.randn(24, KEY_TILE, size, generator=generator)
    for rows in (MIN_ROWS, 2 * MIN_ROWS):
        query = torch.randn(24, size, rows, generator=generator)
        scores = torch.cat([torch.bmm(key[i : i + 1], query[i : i + 1]) for i in range(24)])
        weights = scores.transpose(1, 2).contiguous()
        values = torch.cat([torch.bmm(weights[i : i + 1], key[i : i + 1]) for i in range(24)])
        order = torch.randperm(rows, generator=generator)
        for count in (2, 3, 7, 16, 24):
            assert torch.equal(torch.bmm(key[:count], query[:count]), scores[:count])
            assert torch.equal(torch.bmm(key[:count], query[:count, :, order]), scores[:count, :, order])
            assert torch.equal(torch.bmm(weights[:count], key[:count]), values[:count])
            assert torch.equal(torch.bmm(weights[:count, order], key[:count]), values[:count, order])
            shared = key[:1].expand(count, -1, -1)
            assert torch.equal(torch.bmm(shared, query[:count])[0], scores[0])


def test_layers_may_share_heads_differently() -> None:
    """One step, 8 query heads over 2 KV heads in one layer and over 8 in the next: each has its own query tiles."""
    generator = torch.Generator().manual_seed(3)
    lengths = [(0, 10), (0, 20), (30, 3)]  # start, new tokens
    layers = (LayerLayout(2, 16, 16), LayerLayout(8, 16, 16))
    pool = KvPool(KvLayout("m", "float32", 16, layers), 12)
    pool.data.uniform_(-1, 1, generator=generator)
    blocks = [[3, 1], [7, 2], [5, 0, 9]]
    steps = [
        SequenceStep(SequenceKey(str(i)), [0] * new, start, blocks[i], None) for i, (start, new) in enumerate(lengths)
    ]
    batch = pack(steps, 16, 32, torch.device("cpu"))
    query = torch.randn(8, batch.input_ids.shape[1], 16, generator=generator)
    backends: list[Any] = [TiledAttention(pool), ReferenceAttention(pool)]
    for backend in backends:
        backend.begin(batch)
    for layer in (0, 1, 0):
        tiled, reference = (backend.attend(query, AttentionCall(layer=layer, scale=0.25)) for backend in backends)
        torch.testing.assert_close(tiled, reference, atol=1e-5, rtol=1e-4)
