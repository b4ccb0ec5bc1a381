"""What waits for one client to read it.

The sequences of a request fill it as tokens come, the client's writer empties it. A client that keeps up gets one
update per delta; for one that does not, updates of a choice grow together, so that neither the writer's pace nor its
absence ever reaches a worker. Bounded by the answer itself, and by a clock: a writer that does not come back within a
while (`away_since_s`) has a client that reads nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from pdserve.errors import ServingError
from pdserve.sampling import FinishReason, TokenLogprobs
from pdserve.slo import Timing, Verdict


@dataclass(frozen=True, slots=True)
class ChoiceEnd:
    """How one choice ended, and all of it."""

    finish_reason: FinishReason
    token_ids: tuple[int, ...]  # all
    text: str  # all
    num_prompt_tokens: int
    cached_tokens: int
    timing: Timing
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class ChoiceUpdate:
    """What is new of one choice."""

    index: int
    token_ids: tuple[int, ...]  # may be empty: text that was held back, or only the end
    text: str
    logprobs: tuple[TokenLogprobs, ...]  # one per token when asked for
    cached_tokens: int
    end: ChoiceEnd | None  # set on the choice's last update


@dataclass(slots=True)
class _Waiting:
    """One choice's unread part."""

    token_ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    cached_tokens: int = 0
    end: ChoiceEnd | None = None

    def take(self, index: int) -> ChoiceUpdate:
        return ChoiceUpdate(
            index, tuple(self.token_ids), "".join(self.text), tuple(self.logprobs), self.cached_tokens, self.end
        )


class Outbox:
    """Of one request. Owned by one event loop."""

    def __init__(self) -> None:
        self.away_since_s: float | None = None  # loop time at which the writer left with updates; None: it waits here
        self._waiting: dict[int, _Waiting] = {}
        self._error: ServingError | None = None
        self._changed = asyncio.Event()

    def put(
        self, index: int, token_ids: tuple[int, ...], text: str, logprobs: tuple[TokenLogprobs, ...], cached: int
    ) -> None:
        waiting = self._waiting.setdefault(index, _Waiting())
        waiting.token_ids.extend(token_ids)
        waiting.text.append(text)
        waiting.logprobs.extend(logprobs)
        waiting.cached_tokens = cached
        self._changed.set()

    def end(self, index: int, end: ChoiceEnd) -> None:
        self._waiting.setdefault(index, _Waiting()).end = end
        self._changed.set()

    def fail(self, error: ServingError) -> None:
        """The whole request failed; the first reason counts."""
        self._error = self._error or error
        self._changed.set()

    async def take(self) -> list[ChoiceUpdate]:
        """Everything new, at least one update, choices in order. Raises the error that the request failed with."""
        self.away_since_s = None
        await self._changed.wait()
        if not self._waiting:
            # What came before a failure was delivered first.
            assert self._error is not None
            raise self._error
        updates = [self._waiting[index].take(index) for index in sorted(self._waiting)]
        self._waiting.clear()
        if self._error is None:
            self._changed.clear()
        self.away_since_s = asyncio.get_running_loop().time()
        return updates
