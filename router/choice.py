"""One choice of a request, followed from its first token to its end: tokens from the core become text and updates."""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.errors import InvariantViolation
from pdserve.sampling import FinishReason, TokenLogprobs
from pdserve.slo import Timing, Verdict
from router.interface import Finished, RouterRequest, TokenDelta, TokenStream
from router.text import OutputText


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


@dataclass(slots=True)  # not frozen: one a token, and freezing costs more than the rest of it
class ChoiceUpdate:
    """What is new of one choice."""

    index: int
    token_ids: tuple[int, ...]  # may be empty: text that was held back, or only the end
    text: str
    logprobs: tuple[TokenLogprobs, ...]  # one per token when asked for
    cached_tokens: int
    end: ChoiceEnd | None  # set on the choice's last update


class Choice:
    """Reads one stream. What was taken in and not yet taken out is one update that grows."""

    def __init__(self, index: int, request: RouterRequest, stream: TokenStream, output: OutputText) -> None:
        self.stream = stream
        self._index = index
        self._request = request
        self._output = output
        self._ids: list[int] = []  # all
        self._texts: list[str] = []  # all, in pieces
        self._logprobs: list[TokenLogprobs] = []  # not taken out
        self._num_ids_taken = 0
        self._num_texts_taken = 0
        self._cached_tokens = 0
        self._end: ChoiceEnd | None = None

    def advance(self) -> None:
        """Take in all that the core has. Errors: the ServingError that the request ended with."""
        while self._end is None:
            event = self.stream.poll()
            if event is None:
                return
            if isinstance(event, TokenDelta):
                self._more(event)
            else:
                self._finish(event)

    def take(self) -> ChoiceUpdate | None:
        """What was taken in since the last time; an end always comes with a piece of text, if only an empty one."""
        if self._num_texts_taken == len(self._texts):
            return None
        update = ChoiceUpdate(
            self._index,
            tuple(self._ids[self._num_ids_taken :]),
            "".join(self._texts[self._num_texts_taken :]),
            tuple(self._logprobs),
            self._cached_tokens,
            self._end,
        )
        self._num_ids_taken, self._num_texts_taken = len(self._ids), len(self._texts)
        self._logprobs.clear()
        return update

    def _more(self, event: TokenDelta) -> None:
        if event.first_index != len(self._ids):
            raise InvariantViolation(f"token {event.first_index} came where {len(self._ids)} was due")
        delta = self._output.push(event.token_ids)
        self._ids.extend(event.token_ids[: delta.num_tokens])
        self._logprobs.extend(event.logprobs[: delta.num_tokens])
        self._texts.append(delta.text)
        self._cached_tokens = event.cached_tokens
        if delta.stopped:
            self._close(self.stream.finish(len(self._ids)), FinishReason.STOP)

    def _finish(self, event: Finished) -> None:
        if event.num_tokens != len(self._ids) and event.finish_reason is not FinishReason.ABORT:
            raise InvariantViolation(f"finished with {event.num_tokens} tokens, {len(self._ids)} came")
        rest = self._output.flush()
        self._texts.append(rest.text)
        self._close(event, FinishReason.STOP if rest.stopped else event.finish_reason)

    def _close(self, finished: Finished, reason: FinishReason) -> None:
        self._cached_tokens = finished.cached_tokens
        self._end = ChoiceEnd(
            reason, tuple(self._ids), "".join(self._texts), len(self._request.prompt_token_ids),
            finished.cached_tokens, finished.timing, finished.verdict,
        )  # fmt: skip
