"""The batches that were given out and are not complete: one, or two where the next step is launched ahead.

    schedule n ── schedule n + 1 ── complete n ── schedule n + 2 ── complete n + 1 ── ...

Step n + 1 is formed on what step n will leave if nothing unforeseen happens: its tokens' KV is computed, and who
sampled has one token more, PENDING, which the device puts in itself. When n is complete, PENDING gives way to the
token. Who ended in n after all (end token, error) has a row too many in n + 1: its result is dropped, its blocks stay
until then.

Not in n + 1 is a sequence of n whose next token
    is its last, or brings an error: `max_total_tokens`, or the pool's size, is known in advance
    ends its work here: PREFILL is held from then on
    decides what may come after it: a constraint is followed on the host
All else that sampling depends on (penalties, random numbers, min_tokens) the device counts or the host knows without
the token: docs/adr/0030.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from pdserve.errors import InvariantViolation
from scheduling.batch import Batch
from scheduling.sequence import Sequence, SequenceMode, SequenceState
from scheduling.sequence_table import SequenceTable
from scheduling.step import PENDING, SequenceStep, StepResult


@dataclass(slots=True)
class Flight:
    """One batch in flight."""

    batch: Batch
    stepped: list[Sequence]  # of each of its steps
    steps: Seq[SequenceStep]  # as they were when it was scheduled


class Flights:
    """Owned by the scheduler. Every other call of the scheduler may come at any time, two in flight or not."""

    def __init__(self, table: SequenceTable) -> None:
        self._table = table
        self._capacity_tokens = table.pool.num_blocks * table.pool.block_size
        self._flights: deque[Flight] = deque()  # the oldest first
        self._is_presumed = False  # of the oldest, its end; until it is complete
        self._fed: list[Sequence] = []  # whose last token is PENDING

    def __len__(self) -> int:
        return len(self._flights)

    def add(self, batch: Batch, stepped: list[Sequence]) -> None:
        """A batch was given out; one without steps is complete at once."""
        if batch.steps:
            self._flights.append(Flight(batch, stepped, batch.steps))

    def presume(self) -> list[Sequence]:
        """Take the step in flight as computed; the running sequences that then have something to compute.

        Called once for each step in flight, or not at all. Cost: O(running).
        """
        if len(self._flights) != 1 or self._is_presumed:
            raise InvariantViolation("a step can be launched ahead of one that is in flight, and of one only")
        (flight,) = self._flights
        self._is_presumed = True
        # The objects are filled again for the sequences' next steps.
        flight.steps = [SequenceStep(s.key, s.token_ids, s.start, s.block_ids, s.sample) for s in flight.steps]
        for seq, step in zip(flight.stepped, flight.steps, strict=True):
            if seq.state is SequenceState.RUNNING:
                seq.num_computed_tokens = step.end
                if step.sample is not None and self._can_be_fed(seq):
                    seq.token_ids.append(PENDING)
                    self._fed.append(seq)
        return [seq for seq in self._table.running if seq.num_computed_tokens < len(seq.token_ids)]

    def take(self, batch: Batch, results: Seq[StepResult]) -> Flight:
        """The oldest, which is complete; every token that is known again ends what its sequence knows."""
        if not self._flights or batch is not self._flights[0].batch or len(results) != len(batch.steps):
            raise InvariantViolation(f"{len(results)} results for another batch than the oldest in flight")
        if self._is_presumed:
            self._is_presumed = False
            for seq in self._fed:
                seq.token_ids.pop()
            self._fed.clear()
        return self._flights.popleft()

    def _can_be_fed(self, seq: Sequence) -> bool:
        """It goes on after the token in flight, unless that ends it, and the host need not see the token before."""
        num_tokens = len(seq.token_ids) + 1
        return (
            num_tokens < seq.max_total_tokens
            and num_tokens <= self._capacity_tokens
            and seq.mode is not SequenceMode.PREFILL
            and seq.sample_request.matcher is None
        )

    def check(self) -> None:
        """InvariantViolation if a sequence and the steps in flight disagree."""
        in_step = Counter({seq: seq.in_step for seq in self._table if seq.in_step})
        if in_step != Counter(seq for flight in self._flights for seq in flight.stepped):
            raise InvariantViolation("sequences in a step are not those of the batches in flight")
        if any(seq.state is SequenceState.DRAINING and not seq.in_step for seq in self._table):
            raise InvariantViolation("a sequence drains without a step in flight")
        pending = Counter({seq: count for seq in self._table if (count := seq.token_ids.count(PENDING))})
        if pending != Counter(self._fed) or any(seq.token_ids[-1] != PENDING for seq in self._fed):
            raise InvariantViolation("tokens are pending that no step in flight will bring")
        if len(self._flights) > 1 and not self._is_presumed:
            raise InvariantViolation("two steps in flight, and nothing presumed of the older")
