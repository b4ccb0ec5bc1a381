"""One sequence inside one engine: its tokens, how far they are computed, and who owns its blocks.

WAITING --> RUNNING --> FINISHED                  computed here (FULL, or DECODE after a preemption)
   ^           |
   +-preempted-+
WAITING --> RUNNING --> HELD --> FINISHED         PREFILL: held until the peer has the KV
WAITING --> RESERVED --> RUNNING --> FINISHED     DECODE: waits for its KV, then runs
RUNNING, RESERVED, HELD --> QUARANTINED --> FINISHED      ended while a transfer may touch its blocks
RUNNING, QUARANTINED --> DRAINING --> FINISHED            ended while a step may write its blocks
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from enum import Enum

from pdserve.errors import InvariantViolation
from pdserve.ids import SequenceKey
from pdserve.sampling import SamplingParams
from scheduling.prefix import BlockHash
from scheduling.step import SampleRequest, SequenceStep, TokenMatcher


class SequenceState(Enum):
    """Where a sequence is in its life; `block_ids` is non-empty exactly where it says that it owns blocks."""

    WAITING = "waiting"  # queued; owns nothing
    RUNNING = "running"  # owns its blocks and is stepped
    RESERVED = "reserved"  # owns its blocks; the transfer writes them; not stepped
    HELD = "held"  # owns its blocks; prompt computed, token 1 sampled; the transfer reads them
    QUARANTINED = "quarantined"  # ended; owns its blocks until no transfer touches them
    DRAINING = "draining"  # ended; owns its blocks until every step in flight that writes them is complete
    FINISHED = "finished"  # ended; owns nothing


S = SequenceState
NEXT: dict[SequenceState, frozenset[SequenceState]] = {
    S.WAITING: frozenset({S.RUNNING, S.RESERVED, S.FINISHED}),
    S.RUNNING: frozenset({S.WAITING, S.HELD, S.QUARANTINED, S.DRAINING, S.FINISHED}),
    S.RESERVED: frozenset({S.RUNNING, S.QUARANTINED, S.FINISHED}),
    S.HELD: frozenset({S.QUARANTINED, S.FINISHED}),
    S.QUARANTINED: frozenset({S.DRAINING, S.FINISHED}),
    S.DRAINING: frozenset({S.FINISHED}),
    S.FINISHED: frozenset(),
}


def advance(now: SequenceState, to: SequenceState) -> SequenceState:
    """`to`, if a sequence may go there from `now`; else InvariantViolation."""
    if to not in NEXT[now]:
        raise InvariantViolation(f"sequence cannot go {now.value} -> {to.value}")
    return to


class SequenceMode(Enum):
    """What this worker does with a sequence."""

    PREFILL = "prefill"  # compute the prompt, sample token 1, hold the KV for the peer
    DECODE = "decode"  # receive the KV from the peer, generate from token 2 on
    FULL = "full"  # compute the prompt and generate: no handoff


class Sequence:
    """Mutable; the scheduler's, in one thread. Others read."""

    __slots__ = (
        "arrival_s", "block_ids", "cached_tokens", "committed_s", "deadline_s", "end_token_ids", "first_step_s",
        "hashes", "in_step", "key", "max_total_tokens", "may_grow", "mode", "num_cached_blocks", "num_computed_tokens",
        "num_given_tokens", "num_initial_tokens", "num_prompt_tokens", "num_published_blocks", "num_ready_blocks",
        "order", "priority", "salt", "sample_request", "sampling", "state", "step",
        "token_ids",
    )  # fmt: skip

    def __init__(
        self,
        key: SequenceKey,
        mode: SequenceMode,
        prompt_token_ids: Seq[int],
        sampling: SamplingParams,
        *,
        output_token_ids: Seq[int] = (),
        salt: str = "",
        priority: int = 0,
        arrival_s: float = 0.0,
        deadline_s: float = math.inf,
        matcher: TokenMatcher | None = None,
    ) -> None:
        """`output_token_ids`: delivered by earlier attempts; computed like the prompt, sampled on as output.

        `matcher`: of `sampling.constraint`, where there is one.
        """
        self.key = key
        self.mode = mode
        self.may_grow = mode is not SequenceMode.PREFILL  # generates here: wants more blocks, may be preempted for them
        self.state = SequenceState.WAITING
        self.sampling = sampling
        self.end_token_ids = frozenset(sampling.end_token_ids)
        self.salt = salt
        self.priority = priority  # lower runs earlier
        self.arrival_s = arrival_s  # on the scheduler's clock
        self.deadline_s = deadline_s  # on the scheduler's clock; inf: none
        self.order = 0  # set by the scheduler: breaks ties of arrival

        self.token_ids: list[int] = [*prompt_token_ids, *output_token_ids]
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_initial_tokens = len(self.token_ids)  # what is handed off: known when it came
        self.num_given_tokens = self.num_initial_tokens  # not sampled here: with DECODE's commit, one more
        self.max_total_tokens = self.num_prompt_tokens + sampling.max_tokens  # the scheduler caps it at the context
        self.num_computed_tokens = 0
        self.sample_request = SampleRequest(sampling, self.token_ids, self.num_prompt_tokens, matcher)

        self.block_ids: list[int] = []
        self.hashes: list[BlockHash] = []  # of full blocks, in order
        self.num_published_blocks = 0  # leading blocks that were matched in the cache or offered to it
        self.num_ready_blocks = 0  # PREFILL: leading blocks told of in updates, hence open to a transfer's reads
        self.in_step = 0  # how many of the steps in flight compute it: at most 2
        self.step = SequenceStep(key, (), 0, self.block_ids, None)  # a new one whenever it begins to run

        self.num_cached_blocks = 0  # leading blocks that the cache gave at the latest admission: a transfer skips them
        self.cached_tokens = 0  # the same in tokens, at the first admission
        self.first_step_s: float | None = None
        self.committed_s: float | None = None  # DECODE: when its KV was here

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def awaits_kv(self) -> bool:
        """Its prompt's KV comes from a peer, and has not yet."""
        return self.mode is SequenceMode.DECODE and self.committed_s is None

    @property
    def may_be_touched(self) -> bool:
        """A transfer may be reading or writing its blocks."""
        return self.state in _TOUCHED or (self.state is SequenceState.RUNNING and self.num_ready_blocks > 0)

    @property
    def rank(self) -> tuple[int, float, int]:
        """Queue order; who has the greatest is preempted first."""
        return (self.priority, self.arrival_s, self.order)

    def __repr__(self) -> str:
        return (
            f"Sequence({self.key.request_id}#{self.key.attempt} {self.mode.value} {self.state.value} "
            f"{self.num_computed_tokens}/{len(self.token_ids)} tokens, {len(self.block_ids)} blocks)"
        )


_TOUCHED = frozenset({SequenceState.RESERVED, SequenceState.HELD, SequenceState.QUARANTINED})
