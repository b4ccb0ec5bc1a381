"""Chained block hashes."""

from __future__ import annotations

import subprocess
import sys

from scheduling.prefix import extend_hashes, root_hash


def hashes_of(token_ids: list[int], salt: str = "") -> list[bytes]:
    hashes: list[bytes] = []
    extend_hashes(hashes, token_ids, 4, salt)
    return hashes


def test_only_full_blocks_are_hashed_and_only_once() -> None:
    """Growing token by token gives the same chain as hashing at once, and never touches what is there."""
    tokens, grown = list(range(18)), []
    for end in range(len(tokens) + 1):
        before = list(grown)
        extend_hashes(grown, tokens[:end], 4, "t")
        assert grown[: len(before)] == before and len(grown) == end // 4
    assert grown == hashes_of(tokens, "t")
    assert all(len(block_hash) == 32 for block_hash in grown)


def test_a_hash_names_everything_before_it() -> None:
    """The same block after another prefix, or at another place, has another hash."""
    one, other = hashes_of([0] * 8), hashes_of([1] + [0] * 7)
    assert not set(one) & set(other)
    assert len(set(hashes_of([0] * 400))) == 100


def test_tenants_share_nothing() -> None:
    """Another salt, another chain, from the first block on; also where one salt begins with the other."""
    chains = [hashes_of(list(range(8)), salt) for salt in ("", "a", "ab", "b")]
    assert len({block_hash for chain in chains for block_hash in chain}) == 8
    assert root_hash("a") != root_hash("ab")


def test_token_boundaries_are_part_of_the_hash() -> None:
    """[1, 23] and [12, 3] are different blocks, and so are ids beyond 32 bits."""
    ids = ([1, 23, 0, 0], [12, 3, 0, 0], [256, 0, 0, 0], [1 << 40, 0, 0, 0], [0, 1, 23, 0])
    assert len({hashes_of(list(block))[0] for block in ids}) == len(ids)


def test_hashes_are_the_same_in_every_process() -> None:
    """Nothing depends on Python's seeded hash(): another process computes the same names."""
    program = "from scheduling.prefix import *; h=[]; extend_hashes(h, list(range(8)), 4, 't'); print(h[-1].hex())"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == hashes_of(list(range(8)), "t")[-1].hex()
