"""Stop strings, across the borders of tokens and chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopScan:
    """What a piece of text came to."""

    text: str  # may be sent: holds no stop string (unless included), and no start of one that may still complete
    stopped: bool  # a stop string is complete; nothing follows


class StopMatcher:
    """Ends a text at the stop string that completes first (the longest of those that complete together).

    The result does not depend on how the text is cut: it is decided character by character. Held back is the longest
    tail that begins a stop string, at most its length less one.
    Cost: O(len(piece) * number of stops) by find() over the tail and the piece.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        """`include`: the stop string is part of the text."""
        self._stops = tuple(stops)
        self._include = include
        self._held = ""  # seen, not sent

    @property
    def has_stops(self) -> bool:
        return bool(self._stops)

    def push(self, piece: str, *, may_stop: bool = True) -> StopScan:
        """Take the next piece; with may_stop False a stop string that completes inside it does not count."""
        if not self._stops:
            return StopScan(piece, False)
        text = self._held + piece
        if may_stop:
            cut = self._first_complete(text, len(self._held))
            if cut is not None:
                self._held = ""
                return StopScan(text[:cut], True)
        keep = self._open_tail(text)
        self._held = text[len(text) - keep :]
        return StopScan(text[: len(text) - keep], False)

    def flush(self) -> str:
        """What was held back, once nothing follows."""
        held, self._held = self._held, ""
        return held

    def _first_complete(self, text: str, num_seen: int) -> int | None:
        """Where the text ends by the stop string that completes first at or after num_seen; None: none does."""
        best: tuple[int, int] | None = None  # (end, start), least first
        for stop in self._stops:
            start = text.find(stop, max(0, num_seen - len(stop) + 1))
            if start >= 0 and (best is None or (start + len(stop), start) < best):
                best = (start + len(stop), start)
        return None if best is None else best[0] if self._include else best[1]

    def _open_tail(self, text: str) -> int:
        """Length of the longest tail of the text that a longer stop string begins with."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
