"""The text of one choice: detokenized, cut at stop strings, counted in tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from router.text.detokenizer import Detokenizer
from router.text.stop import StopMatcher


@dataclass(slots=True)  # not frozen: one a token, and freezing costs more than the rest of it
class TextDelta:
    """What some tokens came to."""

    text: str  # may be sent
    num_tokens: int  # of the tokens given, how many count: all, or those up to the one that completed a stop string
    stopped: bool  # a stop string is complete


class OutputText:
    """Follows one choice from its first token to its end; push() until stopped, else flush() once.

    The token that ends a sequence (end of sequence, stop token) is counted and has no text. No stop string counts
    while fewer than min_tokens tokens are there.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        stops: Sequence[str],
        end_token_ids: Collection[int] = (),
        min_tokens: int = 0,
        *,
        include_stop: bool = False,
    ) -> None:
        """`include_stop`: what ends the text, string or token, is part of it."""
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(stops, include=include_stop)
        self._end_token_ids = frozenset(() if include_stop else end_token_ids)
        self._min_tokens = min_tokens
        self.num_tokens = 0

    def push(self, token_ids: Sequence[int]) -> TextDelta:
        if not self._matcher.has_stops:  # nearly always
            self.num_tokens += len(token_ids)
            ends, say = self._end_token_ids, self._detokenizer.push
            return TextDelta("".join([say(i) for i in token_ids if i not in ends]), len(token_ids), False)
        parts: list[str] = []
        for count, token_id in enumerate(token_ids, start=1):
            self.num_tokens += 1
            if token_id in self._end_token_ids:
                continue
            scan = self._matcher.push(self._detokenizer.push(token_id), may_stop=self.num_tokens >= self._min_tokens)
            parts.append(scan.text)
            if scan.stopped:
                return TextDelta("".join(parts), count, True)
        return TextDelta("".join(parts), len(token_ids), False)

    def flush(self) -> TextDelta:
        """The end: text held back by half a character or half a stop string. stopped: that completed one after all."""
        scan = self._matcher.push(self._detokenizer.flush(), may_stop=self.num_tokens >= self._min_tokens)
        return TextDelta(scan.text if scan.stopped else scan.text + self._matcher.flush(), 0, scan.stopped)
