"""Puts the tokens of one request in order: token i is accepted once, and only after token i - 1.

Token 1 comes from the prefill worker and the rest from the decode worker, over two connections, so token 2 may
overtake token 1. What came early waits here, bounded; what came twice is dropped and counted.
"""

from __future__ import annotations

from dataclasses import replace
from heapq import heappop, heappush

from pdserve.errors import InvariantViolation
from router.core.messages import SequenceDelta


class TokenOrder:
    """One attempt's tokens."""

    def __init__(self, max_ahead_tokens: int) -> None:
        self.next_index = 0  # tokens accepted so far
        self.duplicates = 0  # tokens that came again
        self._max_ahead = max_ahead_tokens
        self._ahead: list[tuple[int, int, SequenceDelta]] = []  # heap of (first index, arrival, delta)
        self._num_arrived = 0

    @property
    def has_gap(self) -> bool:
        """Whether something waits for a token that has not come."""
        return bool(self._ahead)

    def accept(self, delta: SequenceDelta) -> list[SequenceDelta]:
        """What can go out now, in order and without overlap; a delta with a finish reason may have no tokens.

        Errors: `InvariantViolation` when more than the bound waits behind a gap.
        """
        if delta.first_index == self.next_index and not self._ahead:  # nearly always
            self.next_index = delta.end
            return [delta]
        if delta.first_index > self.next_index:
            self._keep(delta)
            return []
        ready = []
        current: SequenceDelta | None = delta
        while current is not None:
            fresh = self._trimmed(current)
            if fresh is not None:
                self.next_index = fresh.end
                ready.append(fresh)
            current = self._pop_next()
        return ready

    def accept_next(self, index: int) -> bool:
        """Take one token at once, when it is the next and nothing waits; else it is `accept`'s, and False."""
        if index != self.next_index or self._ahead:
            return False
        self.next_index = index + 1
        return True

    def check(self) -> None:
        """Everything that waits lies beyond what is next."""
        assert all(first > self.next_index for first, _, _ in self._ahead), "a token that could go out waits"

    def _keep(self, delta: SequenceDelta) -> None:
        self._num_arrived += 1
        heappush(self._ahead, (delta.first_index, self._num_arrived, delta))
        waiting = sum(max(1, len(one.token_ids)) for _, _, one in self._ahead)
        if waiting > self._max_ahead:
            raise InvariantViolation(f"{waiting} tokens wait for token {self.next_index}, limit {self._max_ahead}")

    def _pop_next(self) -> SequenceDelta | None:
        if self._ahead and self._ahead[0][0] <= self.next_index:
            return heappop(self._ahead)[2]
        return None

    def _trimmed(self, delta: SequenceDelta) -> SequenceDelta | None:
        """Without what was accepted before; None when nothing of it is new."""
        repeated = min(self.next_index - delta.first_index, len(delta.token_ids))
        self.duplicates += repeated
        if repeated == 0:
            return delta
        if repeated == len(delta.token_ids) and not (delta.finish_reason and delta.end == self.next_index):
            return None
        return replace(
            delta,
            first_index=delta.first_index + repeated,
            token_ids=delta.token_ids[repeated:],
            logprobs=delta.logprobs[repeated:],
        )
