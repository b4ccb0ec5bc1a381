"""For what else than a step's work blocks are held: marks beside the reference counts, set by handoffs alone.

leased        an owner holds the block for a handoff
quarantined   an owner has ended, yet a transfer may still touch the block; goes before leased where both are
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pdserve.errors import InvariantViolation


class BlockMarks:
    """Counted for each block: it may have several owners. Who marks a block keeps a reference to it until the end."""

    def __init__(self) -> None:
        self.num_leased = 0  # leased and not quarantined
        self._leases: dict[int, int] = {}  # block -> how many of its owners hold it for a handoff
        self._quarantines: dict[int, int] = {}

    @property
    def num_quarantined(self) -> int:
        return len(self._quarantines)

    def lease(self, block_ids: Iterable[int]) -> None:
        """One owner of each holds it for a handoff from now on."""
        for block_id in block_ids:
            count = self._leases.get(block_id, 0)
            self._leases[block_id] = count + 1
            if count == 0 and block_id not in self._quarantines:
                self.num_leased += 1

    def unlease(self, block_ids: Iterable[int]) -> None:
        """Ends one `lease` of each."""
        for block_id in block_ids:
            if _drop(self._leases, block_id, "lease") and block_id not in self._quarantines:
                self.num_leased -= 1

    def quarantine(self, block_ids: Iterable[int]) -> None:
        """One owner of each has ended, yet a transfer may still touch the block: it keeps its reference."""
        for block_id in block_ids:
            count = self._quarantines.get(block_id, 0)
            self._quarantines[block_id] = count + 1
            if count == 0 and block_id in self._leases:
                self.num_leased -= 1

    def unquarantine(self, block_ids: Iterable[int]) -> None:
        """Ends one `quarantine` of each."""
        for block_id in block_ids:
            if _drop(self._quarantines, block_id, "quarantine") and block_id in self._leases:
                self.num_leased += 1

    def check(self, refs: Sequence[int]) -> None:
        """InvariantViolation if a mark has no owner (`refs`: how many each block has), or the count is wrong."""
        for marks in (self._leases, self._quarantines):
            for block_id, count in marks.items():
                if not 1 <= count <= refs[block_id]:
                    raise InvariantViolation(f"block {block_id}: {count} marks, fewer owners")
        if self.num_leased != len(self._leases.keys() - self._quarantines.keys()):
            raise InvariantViolation("leased count is wrong")


def _drop(marks: dict[int, int], block_id: int, what: str) -> bool:
    """Whether it was the last."""
    count = marks.get(block_id, 0)
    if count < 1:
        raise InvariantViolation(f"block {block_id}: {what} ended that never began")
    if count > 1:
        marks[block_id] = count - 1
        return False
    del marks[block_id]
    return True
