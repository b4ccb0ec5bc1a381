"""Every live sequence of one engine, where it stands, and the blocks it owns.

All moves between states go through `SequenceTable.move`, so that the queue, the running set, the block references and
their marks can never disagree with the states.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from pdserve.errors import InvariantViolation
from pdserve.ids import SequenceKey
from scheduling.blocks import BlockPool
from scheduling.sequence import Sequence, SequenceState, advance
from scheduling.step import SequenceStep
from scheduling.waiting import WaitingQueue

S = SequenceState
_OWNING = frozenset({S.RUNNING, S.RESERVED, S.HELD, S.QUARANTINED, S.DRAINING})


class SequenceTable:
    """Owned by the scheduler. Finished sequences are not kept: to know nothing of a key is how it is finished."""

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.waiting = WaitingQueue()
        self.running: dict[Sequence, None] = {}  # in order of admission
        self.num_reserved = 0
        self.num_growing = 0  # running or reserved, and may want more blocks
        self._sequences: dict[SequenceKey, Sequence] = {}
        self._next_order = 0

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences.values())

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def num_seats(self) -> int:
        """Sequences that are stepped, or will be without asking again."""
        return len(self.running) + self.num_reserved

    def get(self, key: SequenceKey) -> Sequence | None:
        return self._sequences.get(key)

    def add(self, seq: Sequence) -> None:
        """Queue a new sequence; the caller has looked that its key is not live."""
        assert seq.state is S.WAITING and seq.key not in self._sequences
        seq.order = self._next_order
        self._next_order += 1
        self._sequences[seq.key] = seq
        self.waiting.push(seq)

    def move(self, seq: Sequence, to: SequenceState) -> None:
        """Change a sequence's state and everything that follows from it."""
        before, seq.state = seq.state, advance(seq.state, to)
        self._leave(seq, before)
        self._enter(seq, to)

    def retire(self, seq: Sequence) -> bool:
        """End a sequence that runs by itself, with its blocks freed as soon as that is safe.

        Returns whether a transfer may touch them: then it is QUARANTINED, and the caller must be told to end that.
        """
        if seq.may_be_touched:
            self.move(seq, S.QUARANTINED)
            return True
        self.drop(seq)
        return False

    def drop(self, seq: Sequence) -> None:
        """End a sequence whose blocks no transfer touches; a step in flight still may, then `complete` frees them."""
        self.move(seq, S.DRAINING if seq.in_step else S.FINISHED)

    def leaked_blocks(self) -> int:
        """Block references that no sequence accounts for: 0, or we have a bug. Cost: O(live sequences)."""
        return self.pool.num_references - sum(len(seq.block_ids) for seq in self)

    def _leave(self, seq: Sequence, state: SequenceState) -> None:
        if state is S.WAITING:
            self.waiting.remove(seq)
        elif state is S.RUNNING:
            del self.running[seq]
            self.num_growing -= seq.may_grow
        elif state is S.RESERVED:
            self.num_reserved -= 1
            self.num_growing -= 1
        elif state is S.HELD:
            self.pool.marks.unlease(seq.block_ids)
        elif state is S.QUARANTINED:
            self.pool.marks.unquarantine(seq.block_ids)

    def _enter(self, seq: Sequence, state: SequenceState) -> None:
        if state is S.WAITING:
            self._free_blocks(seq)
            self.waiting.push(seq)
        elif state is S.RUNNING:
            self.running[seq] = None
            seq.step = SequenceStep(seq.key, (), 0, seq.block_ids, None)
            self.num_growing += seq.may_grow
        elif state is S.RESERVED:
            self.num_reserved += 1
            self.num_growing += 1
        elif state is S.HELD:
            self.pool.marks.lease(seq.block_ids)
        elif state is S.QUARANTINED:
            self.pool.marks.quarantine(seq.block_ids)
        elif state is S.FINISHED:
            self._free_blocks(seq)
            del self._sequences[seq.key]

    def _free_blocks(self, seq: Sequence) -> None:
        block_ids, seq.block_ids = seq.block_ids, []
        seq.num_computed_tokens = seq.num_published_blocks = seq.num_cached_blocks = 0
        self.pool.free(block_ids)

    def check(self) -> None:
        """InvariantViolation if states, containers, references and marks disagree. Cost: every block and sequence."""
        self.pool.check()
        self.waiting.check()
        states = Counter(seq.state for seq in self)
        _require(states[S.WAITING] == len(self.waiting), "waiting sequences are not those in the queue")
        _require(set(self.running) == {seq for seq in self if seq.state is S.RUNNING}, "running set is wrong")
        _require(states[S.RESERVED] == self.num_reserved, "reserved count is wrong")
        _require(states[S.FINISHED] == 0, "a finished sequence is still known")
        growing = [seq for seq in self if seq.may_grow and seq.state in (S.RUNNING, S.RESERVED)]
        _require(len(growing) == self.num_growing, "growing count is wrong")
        for seq in self:
            self._check_sequence(seq)
        owners = Counter(block_id for seq in self for block_id in seq.block_ids)
        for block_id in range(self.pool.num_blocks):
            refs = self.pool.refs(block_id)
            _require(refs == owners[block_id], f"block {block_id}: {refs} references, {owners[block_id]} owners")
        _require(self.leaked_blocks() == 0, "blocks leaked")
        self._check_marks()

    def _check_sequence(self, seq: Sequence) -> None:
        size = self.pool.block_size
        _require(bool(seq.block_ids) == (seq.state in _OWNING), f"owns blocks in the wrong state: {seq}")
        _require(len(set(seq.block_ids)) == len(seq.block_ids), f"a block twice in one table: {seq}")
        _require(seq.num_computed_tokens <= len(seq.block_ids) * size, f"KV beyond its blocks: {seq}")
        _require(seq.num_computed_tokens <= len(seq.token_ids), f"more KV than tokens: {seq}")
        _require(seq.num_published_blocks <= seq.num_computed_tokens // size, f"published before computed: {seq}")
        if seq.state is S.RUNNING:
            _require(seq.num_uncomputed_tokens >= 1 or seq.in_step > 0, f"running with nothing to compute: {seq}")
        for index, block_id in enumerate(seq.block_ids):
            block_hash = self.pool.hash_of(block_id)
            if index >= seq.num_computed_tokens // size:  # still to be written here
                _require(self.pool.refs(block_id) == 1 and block_hash is None, f"block {block_id} shared early: {seq}")
            elif block_hash is not None:
                _require(block_hash == seq.hashes[index], f"block {block_id} holds another prefix: {seq}")

    def _check_marks(self) -> None:
        leased = {block_id for seq in self if seq.state is S.HELD for block_id in seq.block_ids}
        quarantined = {block_id for seq in self if seq.state is S.QUARANTINED for block_id in seq.block_ids}
        counts = self.pool.counts()
        _require(counts.quarantined == len(quarantined), f"quarantined blocks miscounted: {counts}")
        _require(counts.leased == len(leased - quarantined), f"leased blocks miscounted: {counts}")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise InvariantViolation(message)
