"""The queue in front of an engine: by priority, then first come first served."""

from __future__ import annotations

from bisect import bisect_left, insort

from pdserve.errors import InvariantViolation
from scheduling.sequence import Sequence


def _rank(seq: Sequence) -> tuple[int, float, int]:
    return seq.rank


class WaitingQueue:
    """Sequences sorted by rank. One that was preempted comes back with the rank it had: before all that came later."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []
        self.uncomputed_tokens = 0  # that this engine will compute: none for those that await their KV

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def head(self) -> Sequence | None:
        return self._sequences[0] if self._sequences else None

    def push(self, seq: Sequence) -> None:
        insort(self._sequences, seq, key=_rank)
        self.uncomputed_tokens += _work(seq)

    def remove(self, seq: Sequence) -> None:
        """Take out the head or any other."""
        index = bisect_left(self._sequences, seq.rank, key=_rank)
        if index == len(self._sequences) or self._sequences[index] is not seq:
            raise InvariantViolation(f"not in the queue: {seq}")
        del self._sequences[index]
        self.uncomputed_tokens -= _work(seq)

    def check(self) -> None:
        """InvariantViolation if the order or the total is wrong."""
        ranks = [seq.rank for seq in self._sequences]
        if ranks != sorted(set(ranks)):
            raise InvariantViolation("the queue is out of order")
        if self.uncomputed_tokens != sum(map(_work, self._sequences)):
            raise InvariantViolation("the queue's uncomputed tokens are wrong")


def _work(seq: Sequence) -> int:
    return 0 if seq.awaits_kv else seq.num_uncomputed_tokens
