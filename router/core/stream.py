"""The events of one request, from the core to the front that reads them.

The core never waits for a reader: what is not read yet is one delta that grows, bounded by the request's max_tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pdserve.errors import ServingError
from pdserve.sampling import TokenLogprobs
from router.core.messages import SequenceDelta
from router.interface import Finished, TokenDelta


class StreamOwner(Protocol):
    """Who ends the request when its reader wants that."""

    def cancel(self) -> None: ...

    def finish(self, num_tokens: int) -> Finished: ...


class RequestStream:
    """A `TokenStream`: deltas, then `Finished` or an error. One writer (the core), one reader, one event loop."""

    def __init__(self, owner: StreamOwner) -> None:
        self._owner = owner
        self._wake: Callable[[], None] = _nobody
        self._first_index = 0
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._cached_tokens = 0
        self._end: Finished | ServingError | None = None
        self._delivered = False  # the end was read, or is not wanted any more

    # ---- the reader's side ----

    def listen(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        if self._token_ids or self._end is not None:
            wake()

    def poll(self) -> TokenDelta | Finished | None:
        if self._token_ids:
            return self._take()
        if self._end is None or self._delivered:
            return None
        self._delivered = True
        if isinstance(self._end, ServingError):
            raise self._end
        return self._end

    def cancel(self) -> None:
        """Stop the workers; what is unread stays readable, then `Cancelled` is raised. Nothing to do once it ended."""
        self._owner.cancel()

    def finish(self, num_tokens: int) -> Finished:
        """End with reason STOP after `num_tokens` tokens; nothing more can be read."""
        self._delivered = True
        self._token_ids.clear()
        self._logprobs.clear()
        return self._owner.finish(num_tokens)

    def _take(self) -> TokenDelta:
        delta = TokenDelta(self._first_index, tuple(self._token_ids), tuple(self._logprobs), self._cached_tokens)
        self._first_index += len(self._token_ids)
        self._token_ids.clear()
        self._logprobs.clear()
        return delta

    # ---- the core's side ----

    @property
    def unread_tokens(self) -> int:
        return len(self._token_ids)

    def put(self, delta: SequenceDelta, cached_tokens: int) -> None:
        """More tokens, in order; dropped when the reader has said that it wants no more."""
        if self._delivered:
            return
        self._token_ids.extend(delta.token_ids)
        self._logprobs.extend(delta.logprobs)
        self._cached_tokens = cached_tokens
        self._wake()

    def put_one(self, token_id: int) -> None:
        """As `put`, for one token with nothing beside it, behind others."""
        if not self._delivered:
            self._token_ids.append(token_id)
            self._wake()

    def end(self, outcome: Finished | ServingError) -> None:
        """The one terminal event; called once."""
        assert self._end is None, "a request ended twice"
        self._end = outcome
        self._wake()


def _nobody() -> None:
    """Nobody listens yet."""
