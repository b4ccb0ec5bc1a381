"""The pool's views, its memory, and what goes in comes out."""

from __future__ import annotations

import pytest
import torch

from engine.kv_pool import KvPool
from pdserve.kv_layout import KvLayout, LayerLayout
from pdserve.kv_memory import KvMemory

UNLIKE = KvLayout("m", "float32", 4, (LayerLayout(2, 24, 16), LayerLayout(1, 8, 8), LayerLayout(3, 24, 16)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_written_is_gathered(dtype: str) -> None:
    """Layers of unlike shapes, blocks in any order, no layer touches another."""
    layout = KvLayout("m", dtype, 4, UNLIKE.layers)
    pool = KvPool(layout, 9)
    pool.check()
    table = torch.tensor([7, 2, 5])
    at = torch.arange(10)
    written = []
    for index, facts in enumerate(layout.layers):
        key = torch.randn(10, facts.kv_heads, facts.key_size).to(pool.dtype)
        value = torch.randn(10, facts.kv_heads, facts.value_size).to(pool.dtype)
        pool.write(index, table[at // 4], at % 4, key, value)
        written.append((key, value))
    for index, (key, value) in enumerate(written):
        found_key, found_value = pool.gather(index, table, 10)
        assert torch.equal(found_key, key.transpose(0, 1))
        assert torch.equal(found_value, value.transpose(0, 1))
    others = [block for block in range(9) if block not in (7, 2, 5)]
    assert not pool.data[others].any()


def test_blocks_lie_in_the_shared_memory_one_after_the_other() -> None:
    """A block's bytes are what a peer maps: [key heads, slots, size] then values, layer by layer."""
    memory = KvMemory(5, UNLIKE.block_bytes)
    pool = KvPool(UNLIKE, 5, memory)
    pool.check()
    pool.data[3] = torch.arange(UNLIKE.block_elements)
    seen = torch.frombuffer(bytearray(memory.block(3)), dtype=torch.float32)
    assert torch.equal(seen, torch.arange(UNLIKE.block_elements, dtype=torch.float32))
    assert not any(memory.block(2))
    first_of_layer_2 = UNLIKE.layer_offset(2)
    assert pool.key(2)[3, 0, 0, 0] == first_of_layer_2
    assert pool.value(2)[3, 0, 0, 0] == first_of_layer_2 + 3 * 4 * 24
    assert pool.key(2)[3, 1, 2, 5] == first_of_layer_2 + (1 * 4 + 2) * 24 + 5


def test_clear_zeroes_whole_blocks_and_no_other() -> None:
    """What a former owner left must not be read."""
    pool = KvPool(UNLIKE, 4)
    pool.data.fill_(float("nan"))
    pool.clear(torch.tensor([2]))
    assert not pool.data[2].any()
    assert pool.data[[0, 1, 3]].isnan().all()


def test_a_piece_divides_every_layers_keys_and_values() -> None:
    """Sizes 24, 16 and 8 share 8."""
    pool = KvPool(UNLIKE, 4)
    assert pool.piece_elements(4) == 32
    assert UNLIKE.block_elements % 32 == 0
