"""What waits for one client to read it.

The client's writer takes; while it is away, tokens wait in the core's streams, as one delta that grows, so that neither
its pace nor its absence ever reaches a worker. A writer that waits is woken once, however many tokens came: at most one
wake-up for each request and step of a worker, fewer when the loop or the client is behind.

Bounded by the answer itself, and by a clock: a writer that does not come back within a while (`away_since_s`) has a
client that reads nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from pdserve.errors import InvariantViolation, ServingError
from router.choice import Choice, ChoiceUpdate
from router.doorbell import Doorbell

logger = logging.getLogger(__name__)


class Outbox:
    """Of one request. Owned by one event loop."""

    def __init__(self, doorbell: Doorbell) -> None:
        self.away_since_s: float | None = None  # loop time at which the writer left with updates; None: it waits here
        self._loop = asyncio.get_running_loop()
        self._doorbell = doorbell
        self._choices: Sequence[Choice] = ()
        self._error: ServingError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._has_news = False  # a stream has said so since they were last read
        self._looks_ahead = False
        self._is_ringing = False
        self._is_closed = False

    def follow(self, choices: Sequence[Choice], *, looks_ahead: bool) -> None:
        """Called once. `looks_ahead`: tokens are read though the writer is away, as one may be the last (a stop)."""
        self._choices = choices
        self._looks_ahead = looks_ahead
        for choice in choices:
            choice.stream.listen(self._ring)

    async def take(self) -> list[ChoiceUpdate]:
        """Everything new, at least one update, choices in order. Raises the error that the request failed with."""
        self.away_since_s = None
        while True:
            if self._has_news:
                self._has_news = False
                self._advance()
                updates = [update for choice in self._choices if (update := choice.take()) is not None]
                if updates:
                    self.away_since_s = self._loop.time()
                    return updates
            if self._error is not None:  # what came before it was delivered first
                raise self._error
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def close(self) -> None:
        """Nobody takes any more."""
        self._is_closed = True

    def _ring(self) -> None:
        """A stream has something; called by the core in the midst of its work."""
        if self._is_ringing:
            self._doorbell.has_more = True
        else:
            self._is_ringing = True
            self._doorbell.ring(self._answer)

    def _answer(self) -> None:
        self._is_ringing = False
        self._has_news = True
        if self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_result(None)
        elif self._looks_ahead and not self._is_closed:
            self._advance()

    def _advance(self) -> None:
        """Take in what the streams have. The first error counts, and fails the request as a whole."""
        for choice in self._choices:
            try:
                choice.advance()
            except ServingError as error:
                self._error = self._error or error
            except Exception:
                logger.exception("a request failed in the router")
                self._error = self._error or InvariantViolation("internal error")
                choice.stream.cancel()
