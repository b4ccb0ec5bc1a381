"""The memory of a KV pool: shared or private, resident when asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pdserve.kv_memory import KvMemory, MappedKvMemory

NUM_BLOCKS, BLOCK_BYTES = 40, 100_000


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("shared", [True, False])
def test_blocks_and_generations_lie_apart(shared: bool) -> None:
    """Every byte of a block is its own, and zero at first."""
    memory = KvMemory(NUM_BLOCKS, BLOCK_BYTES, shared)
    for index in (0, 7, NUM_BLOCKS - 1):
        assert not any(memory.block(index))
        memory.block(index)[:] = bytes([index + 1]) * BLOCK_BYTES
        memory.generations[index] = 1 << 40 | index
    assert [memory.block(index)[0] for index in (0, 1, 7, NUM_BLOCKS - 1)] == [1, 0, 8, NUM_BLOCKS]
    assert memory.block(7)[BLOCK_BYTES - 1] == 8
    assert memory.generations[7] == 1 << 40 | 7
    assert (memory.fd is not None) == shared


def test_another_may_map_shared_memory() -> None:
    """Read-only, and it sees what the owner writes later."""
    memory = KvMemory(NUM_BLOCKS, BLOCK_BYTES)
    assert memory.fd is not None
    mapped = MappedKvMemory(os.dup(memory.fd), NUM_BLOCKS, BLOCK_BYTES)
    memory.block(3)[:5] = b"later"
    assert bytes(mapped.block(3)[:5]) == b"later"
    with pytest.raises(TypeError):
        mapped.block(3)[0] = 1
    mapped.close()


@pytest.mark.parametrize("shared", [True, False])
def test_memory_is_taken_when_asked(shared: bool) -> None:
    """Not at construction; contents stay."""
    before = resident_bytes()
    memory = KvMemory(256, 1 << 18, shared)
    memory.block(9)[:4] = b"kept"
    assert resident_bytes() - before < 32 << 20
    memory.make_resident()
    grown = resident_bytes() - before
    assert bytes(memory.block(9)[:4]) == b"kept"
    if grown < 8 << 20:
        pytest.skip("this system does not populate memory on request")
    assert grown > 60 << 20
