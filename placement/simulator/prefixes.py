"""The keys of a simulated prompt's chunks, made without its tokens: equal where the tokens up to a chunk's end are."""

from __future__ import annotations

from placement.simulator.requests import SimRequest
from scheduling.prefix_directory import CHUNK_TOKENS


class ChunkNames:
    """Whole numbers from 0, given in the order in which chunks are first seen; belongs to one run."""

    def __init__(self) -> None:
        # tokens of an id, or of an answer less those of its prompt; the chunk before; ids -> key
        self._names: dict[tuple[int, int, tuple[int, ...]], int] = {}
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

    def with_answer(self, request: SimRequest, keys: list[int], num_tokens: int) -> list[int]:
        """What `scheduling.prefix_directory.extended_keys` tells apart, of so many tokens of prompt and answer. `keys`
        are those of the prompt. Whole prompts that are equal have equal answers (`worker.TOKEN_ID`); called once."""
        ids, size = request.prefix_ids, request.prefix_tokens
        is_shared = request.prompt_tokens <= len(ids) * size
        longer = list(keys)
        for start in range(len(keys) * CHUNK_TOKENS, num_tokens - CHUNK_TOKENS + 1, CHUNK_TOKENS):
            name = self._next
            if is_shared:
                before, left = longer[-1] if longer else -1, ids[start // size : -(-request.prompt_tokens // size)]
                name = self._names.setdefault((-request.prompt_tokens, before, left), name)
            self._next += name == self._next
            longer.append(name)
        return longer
