"""The keys of a simulated prompt's chunks, made without its tokens: equal where the tokens up to a chunk's end are."""

from __future__ import annotations

from placement.simulator.requests import SimRequest
from scheduling.prefix_directory import CHUNK_TOKENS


class ChunkNames:
    """Whole numbers from 0, given in the order in which chunks are first seen; belongs to one run."""

    def __init__(self) -> None:
        self._names: dict[tuple[int, int, tuple[int, ...]], int] = {}  # tokens of an id, chunk before, ids -> key
        self._next = 0

    def of(self, request: SimRequest) -> list[int]:
        """What `scheduling.prefix_directory.chunk_keys` tells apart, of `requests.prompt_token_ids`; called once for
        each request: where it is its own, its chunks have names that nobody has."""
        ids, size = request.prefix_ids, request.prefix_tokens
        shared_tokens = min(len(ids) * size, request.prompt_tokens)
        keys: list[int] = []
        for start in range(0, request.prompt_tokens - CHUNK_TOKENS + 1, CHUNK_TOKENS):
            end = start + CHUNK_TOKENS
            name = self._next
            if end <= shared_tokens:
                before = keys[-1] if keys else -1
                name = self._names.setdefault((size, before, ids[start // size : -(-end // size)]), name)
            self._next += name == self._next
            keys.append(name)
        return keys
