"""What the blocks of prompts are called: equal tokens from the first on, equal number; other tokens, another number.

A prompt's blocks stand for chains, as in `scheduling.prefix`: a block's number tells all that comes before it. Blocks
that lie within the prefix ids of a workload are numbered by the chain of these ids, so that a run of them has
consecutive numbers; what comes after, a request's own tokens and those generated, is one more such run, the request's
own. Only requests whose whole prompts are equal generate equal tokens, and share that run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from placement.simulator.fast.records import Records
from placement.workload.workload import Ints, Prefixes, Workload

WORD_BITS = 32

name = np.dtype(
    [
        ("chain", "i8"),  # where its runs' first numbers begin in `Names.runs`
        ("own", "i8"),  # the number of its first block that is not within prefix ids
        ("bits", "i8"),  # where its bits begin: of the sequence on its prefill worker, then of the other
        ("shared", "i4"), ("words", "i4"),  # blocks within prefix ids; words of bits of one sequence
        ("alike", "i4"),  # 1: another request has this whole prompt, and its own run is not its alone
        ("unused", "i4"),
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Names:
    """Of all requests."""

    rows: Records  # of `name`
    runs: Ints  # the number of the first block within each prefix id of each request
    num_words: int
    num_nodes: int  # numbers given
    prefix_tokens: int


def names_of(workload: Workload, block_size: int, max_tokens: int) -> Names:
    """For blocks of this size; no sequence has more than `max_tokens`. The latest are kept: a search runs the same
    requests at many rates."""
    prefixes, prompt = workload.prefixes, workload.prompt_tokens
    if prefixes is None:
        prefixes = Prefixes(np.zeros(0, np.int64), np.zeros(len(prompt) + 1, np.int64))
    most = np.minimum(prompt + np.minimum(workload.output_tokens, max_tokens), max_tokens) // block_size + 1
    columns = (np.ascontiguousarray(one, np.int64) for one in (prefixes.ids, prefixes.offsets, prompt, most))
    return _names(*(one.tobytes() for one in columns), prefixes.block_tokens, block_size)


@lru_cache(maxsize=4)
def _names(
    id_bytes: bytes, offset_bytes: bytes, prompt_bytes: bytes, most_bytes: bytes, per_id: int, block_size: int
) -> Names:
    """By content; `most` blocks of each request."""
    ids, offsets, prompt, most = (
        np.frombuffer(one, np.int64) for one in (id_bytes, offset_bytes, prompt_bytes, most_bytes)
    )
    prefixes = Prefixes(ids, offsets, per_id)
    used = np.minimum(np.diff(prefixes.offsets), -(-prompt // per_id))
    starts = np.cumsum(used) - used
    chains, levels = _chains(prefixes, used, starts)
    first, last = levels * per_id // block_size, (levels + 1) * per_id // block_size
    begins = np.cumsum(last - first) - (last - first)
    rows = np.zeros(len(prompt), name)
    rows["chain"] = starts
    rows["shared"] = np.minimum(prompt, per_id * used) // block_size
    alike = _alike(prompt, np.where(used > 0, chains[starts + used - 1], 0) if len(chains) else used, used * per_id)
    lengths = np.zeros(int(alike.max(initial=-1)) + 1, np.int64)
    np.maximum.at(lengths, alike, np.maximum(most - rows["shared"], 0))
    begin_own = int((last - first).sum()) + np.cumsum(lengths) - lengths
    rows["own"] = begin_own[alike]
    rows["alike"] = np.bincount(alike, minlength=len(lengths))[alike] > 1
    rows["words"] = most // WORD_BITS + 1
    rows["bits"] = 2 * (np.cumsum(rows["words"], dtype=np.int64) - rows["words"])
    num_nodes = int((last - first).sum() + lengths.sum())
    return Names(rows, begins[chains], 2 * int(rows["words"].sum()), num_nodes, per_id)


def _chains(prefixes: Prefixes, used: Ints, starts: Ints) -> tuple[Ints, Ints]:
    """[ids used] numbers: equal where the ids up to this one are; and how many ids come before, of each number."""
    chains = np.empty(int(used.sum()), np.int64)
    known, dense = np.unique(prefixes.ids, return_inverse=True)
    parents = np.zeros(len(used), np.int64)
    levels: list[Ints] = []
    num = 0
    for level in range(int(used.max(initial=0))):
        alive = np.flatnonzero(used > level)
        pairs = parents[alive] * len(known) + dense[prefixes.offsets[alive] + level]
        found, which = np.unique(pairs, return_inverse=True)
        chains[starts[alive] + level] = parents[alive] = num + which
        levels.append(np.full(len(found), level))
        num += len(found)
    return chains, np.concatenate(levels) if levels else np.zeros(0, np.int64)


def _alike(prompt: Ints, chain: Ints, covered: Ints) -> Ints:
    """[requests] numbers: equal where whole prompts are, which then lie within equal prefix ids."""
    within = prompt <= covered
    keys = np.where(within, chain * (int(prompt.max()) + 1) + prompt, -1 - np.arange(len(prompt)))
    numbers: Ints = np.unique(keys, return_inverse=True)[1]
    return numbers
