"""A sequence's place in its grammar."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from llguidance import LLMatcher

from pdserve.errors import BadSampling, InvariantViolation


class GrammarMatcher:
    """`TokenMatcher` of one sequence. It follows the tokens that it is shown, whoever sampled them: after a handoff, a
    preemption or a resumed attempt there is nothing to restore. Used by one thread at a time."""

    def __init__(self, matcher: LLMatcher) -> None:
        """`matcher`: at the start of its grammar, this sequence's alone."""
        self._matcher = matcher
        self._num_seen = 0  # output tokens

    def allowed(self, token_ids: Seq[int], num_prompt_tokens: int) -> bytes:
        """See `TokenMatcher`. At the end of the grammar only end-of-sequence tokens are allowed."""
        new = token_ids[num_prompt_tokens + self._num_seen :]
        if new and not self._matcher.consume_tokens(list(new)):
            raise InvariantViolation(f"output token {self._num_seen:,} or later breaks the constraint")
        self._num_seen += len(new)
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            first_line = self._matcher.get_error().partition("\n")[0][:200]
            raise BadSampling(f"the constraint cannot be followed after {self._num_seen:,} tokens: {first_line}")
        return bytes(mask)
