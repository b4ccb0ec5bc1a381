"""What one step is asked to compute, and what it gives: the border between scheduling and whatever computes.

The engine's model runner, the mock runner and the simulator all stand behind `StepRunner`.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

from pdserve.errors import ServingError
from pdserve.ids import SequenceKey
from pdserve.sampling import SampledToken, SamplingParams


class TokenMatcher(Protocol):
    """Which tokens may follow in one sequence, by its constraint; made before the sequence is queued, kept with it."""

    def allowed(self, token_ids: Seq[int], num_prompt_tokens: int) -> bytes:
        """One bit per token id, lowest first, of those that may come next: a sequence's tokens only grow between calls.

        Raises ServingError: the tokens break the constraint, or following it costs too much.
        """
        ...


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """Everything that choosing the next token of a sequence depends on, besides its logits."""

    sampling: SamplingParams
    token_ids: Seq[int]  # prompt and output so far; the sampler only reads it, and only during the step
    num_prompt_tokens: int  # the first ones of token_ids
    matcher: TokenMatcher | None = None  # None: every token may come
    always_plain: bool = field(init=False)  # at every step the highest logit is the answer, and nothing else is asked

    def __post_init__(self) -> None:
        sampling = self.sampling
        bare = sampling.greedy and not sampling.has_penalties and not sampling.logit_bias and sampling.logprobs is None
        may_end = not (sampling.min_tokens and sampling.end_token_ids)
        object.__setattr__(self, "always_plain", bare and may_end and self.matcher is None)

    @property
    def output_index(self) -> int:
        """Index among the output tokens of the token to choose; names its random number, with seed and choice."""
        return len(self.token_ids) - self.num_prompt_tokens


@dataclass(slots=True, eq=False)  # not frozen: filling frozen fields costs several times more, and steps are many
class SequenceStep:
    """One sequence's share of a step: compute these tokens, then perhaps sample.

    The scheduler owns it and fills it again for the sequence's next step; others read it, during the step only. While
    it is the same object, `block_ids` has only grown: whoever keeps block tables between steps may go by that.
    """

    key: SequenceKey
    token_ids: Seq[int]  # the tokens to compute, at positions [start, start + len)
    start: int  # num_computed_tokens before the step: their KV is in the pool
    block_ids: Seq[int]  # block table; covers [0, start + len)
    sample: SampleRequest | None  # None: the prompt is not complete after this step

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


PENDING = -1
"""In place of a token: the one that the sequence's step before this samples, known to the device alone."""

StepResult = SampledToken | ServingError | None
"""A token; why this sequence cannot go on (not-a-number logits, say); or None where nothing was to be sampled."""


class StepRunner(Protocol):
    """Computes steps over a KV pool; owned by one thread."""

    def execute(self, steps: Seq[SequenceStep]) -> list[StepResult]:
        """Compute one step, all sequences packed, and sample; one result per sequence, in order.

        Writes KV for every token computed. Raises only when the whole step is lost.
        """
        ...


Ticket = TypeVar("Ticket")


@runtime_checkable
class AheadRunner(StepRunner, Protocol[Ticket]):
    """A runner whose steps are computed elsewhere, in the order of their launches, while the host does other things."""

    def launch(self, steps: Seq[SequenceStep]) -> Ticket:
        """Have a step computed; returns at once, and reads `steps` only now. At most two may wait for `collect`.

        PENDING stands for the token that the sequence's step in the launch before this samples. Raises when the whole
        step is lost: then nothing of it will be computed any more.
        """
        ...

    def collect(self, ticket: Ticket) -> list[StepResult]:
        """Wait until a step is done, to its last write; its results, as `execute` gives them.

        Called once per launch, in their order. A PENDING that came to nothing (an error, a sequence at its end) gives
        any result. Raises when the whole step is lost.
        """
        ...
