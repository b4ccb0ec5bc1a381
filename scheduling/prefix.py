"""Names of KV blocks by content: a chain of 256-bit hashes over a prompt's full blocks.

    root = H(salt)      hash[0] = H(root | tokens of block 0)      hash[i] = H(hash[i - 1] | tokens of block i)

Equal hashes mean an equal prefix of tokens under an equal salt, so KV found under a hash may be shared. The salt is the
tenant's: one tenant can neither read nor time another's cache (RELIABILITY section 3). Never Python's hash().
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Seq
from functools import lru_cache
from hashlib import blake2b

BlockHash = bytes
"""32 bytes."""


@lru_cache(maxsize=1024)
def root_hash(salt: str) -> BlockHash:
    """The parent of every first block under this salt."""
    return blake2b(salt.encode(), digest_size=32, person=b"pdserve-prefix").digest()


def extend_hashes(hashes: list[BlockHash], token_ids: Seq[int], block_size: int, salt: str) -> None:
    """Append the hashes of the full blocks of `token_ids` that `hashes` does not cover yet.

    Cost: one blake2b of 32 + 8 * block_size bytes per newly full block; nothing when there is none.
    Trusts: the blocks already in `hashes` are of these tokens and this salt.
    """
    full = len(token_ids) // block_size
    if len(hashes) >= full:
        return
    parent = hashes[-1] if hashes else root_hash(salt)
    for start in range(len(hashes) * block_size, full * block_size, block_size):
        tokens = array("q", token_ids[start : start + block_size]).tobytes()
        parent = blake2b(parent + tokens, digest_size=32).digest()
        hashes.append(parent)
