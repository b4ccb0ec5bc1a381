"""What came of one request, by the client's clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Outcome(Enum):
    """How a request ended, as its client sees it."""

    OK = "ok"
    SHORT = "short"  # fewer tokens came than were asked for
    REJECTED = "rejected"  # the server had no room
    TIMEOUT = "timeout"  # by the client's limit, or the server's deadline
    FAILED = "failed"
    INTERRUPTED = "interrupted"  # by Ctrl-C or an early decision: says nothing about the server


class BadAnswer(Exception):
    """The server said something else than a stream of tokens."""

    def __init__(self, message: str, outcome: Outcome = Outcome.FAILED, blame: str | None = None) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.blame = blame  # the server's verdict, where it gives one


@dataclass(frozen=True, slots=True)
class Answer:
    """A stream that was read to its end. Times are perf_counter's."""

    first_s: float  # the first message with tokens
    last_s: float  # the last one
    num_tokens: int  # by the server's usage; without one, the messages
    gaps_s: Sequence[float]  # between messages with tokens
    cached_tokens: int = 0  # of the prompt, found in the server's prefix cache
    token_ids: tuple[int, ...] = ()  # where asked for
    blame: str | None = None  # the server's verdict: the phase to blame, "none" when nothing was missed

    @property
    def tpot_s(self) -> float:
        return (self.last_s - self.first_s) / (self.num_tokens - 1) if self.num_tokens > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """One request of an open loop. Times are seconds since the loop began."""

    index: int
    intended_s: float  # when it was to be sent: latency counts from here, whatever held the generator up
    late_s: float  # how much later the generator came to it
    capped_s: float  # then waited for a free place, where the number of open requests is limited
    outcome: Outcome
    prompt_tokens: int
    asked_tokens: int
    end_s: float
    first_s: float | None = None  # None: no token came
    num_tokens: int = 0
    tpot_s: float = 0.0
    gaps_s: Sequence[float] = ()
    cached_tokens: int = 0
    error: str = ""
    blame: str | None = None

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_s is None else self.first_s - self.intended_s

    @property
    def e2e_s(self) -> float:
        return self.end_s - self.intended_s

    def meets(self, ttft_s: float | None, tpot_s: float | None) -> bool:
        """Whether it was answered whole, with both in time; None is no target."""
        return (
            self.outcome is Outcome.OK
            and (ttft_s is None or (self.ttft_s is not None and self.ttft_s <= ttft_s))
            and (tpot_s is None or self.num_tokens < 2 or self.tpot_s <= tpot_s)
        )
