"""`scheduling.prefix_directory`, compiled: which prefixes were noted for whom.

It is kept as a worker's own cache is (`cache`): a chunk is a block that nobody owns, of which so many are kept as a
worker's pool holds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.cache import count_prefix, keep_again
from placement.simulator.fast.kept import evict
from placement.simulator.fast.names import names_of
from placement.simulator.fast.records import Records
from placement.simulator.fast.store import Cache, room_for
from placement.workload.workload import Workload
from scheduling.prefix_directory import CHUNK_TOKENS

known = np.dtype(
    [
        ("index", "i4"), ("size", "i4"), ("prefix_tokens", "i4"),  # as of a worker: its blocks are chunks
        ("idle", "i4"), ("free", "i4"),  # chunks it has, and may have; 0 and 0 where it keeps no prefixes
        ("block_size", "i4"),
        ("stamp", "i4"), ("run_head", "i4"), ("run_tail", "i4"), ("free_run", "i4"), ("num_runs", "i4"),
        ("free_leaf", "i4"), ("num_leaves", "i4"), ("unused", "i4"),
    ]
)  # fmt: skip
"""What was noted for one worker."""


class Directory(NamedTuple):
    """Of all workers."""

    known: Any  # [workers] of `known`
    chunks: Cache


def directory_of(workload: Workload, workers: Records) -> Directory:
    """Nothing is noted yet."""
    rows = np.zeros(len(workers), known)
    names = names_of(workload, CHUNK_TOKENS, int(workers["max_len"].max()))
    caches = workers["prefix_tokens"] > 0
    rows["index"], rows["size"], rows["block_size"] = workers["index"], CHUNK_TOKENS, workers["size"]
    rows["prefix_tokens"] = np.where(caches, names.prefix_tokens, 0)
    rows["free"] = np.where(caches, workers["num_blocks"].astype(np.int64) * workers["size"] // CHUNK_TOKENS, 0)
    rows["run_head"] = rows["run_tail"] = rows["free_run"] = -1
    longest = min(int((workload.prompt_tokens + workload.output_tokens).max()), int(workers["max_len"].max()))
    return Directory(rows, room_for(names, len(workers), int(rows["free"].max()) + longest // CHUNK_TOKENS))


@compiled
def expected(directory: Directory, index: int, i: int, prompt: int) -> int:
    """`PrefixDirectory.expected`, of one worker."""
    row = directory.known[index]
    if row.prefix_tokens == 0:
        return 0
    depth, _ = count_prefix(row, directory.chunks, i, prompt // CHUNK_TOKENS)
    tokens = min(depth * CHUNK_TOKENS, prompt - 1)
    return int(tokens - tokens % row.block_size)


@compiled
def note(directory: Directory, index: int, i: int, tokens: int, is_there: bool = True) -> None:
    """`PrefixDirectory.note` or, where it is not there, `reserve`; of a request's first tokens, with its answer's."""
    row = directory.known[index]
    if row.prefix_tokens > 0:
        keep_again(row, directory.chunks, i, tokens // CHUNK_TOKENS, is_there)
        evict(row, directory.chunks, row.free)


@compiled
def missed(directory: Directory, index: int, num_tokens: int) -> None:
    """`PrefixDirectory.missed`."""
    row = directory.known[index]
    if row.prefix_tokens > 0 and num_tokens >= CHUNK_TOKENS:
        evict(row, directory.chunks, row.idle - min(num_tokens // CHUNK_TOKENS, row.idle))
