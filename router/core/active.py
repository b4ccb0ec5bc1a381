"""One running request: who serves it, what came of it so far, which timers watch it."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from pdserve.ids import SequenceKey
from pdserve.sampling import FinishReason
from pdserve.slo import Timing
from router.core.fleet import Worker
from router.core.order import TokenOrder
from router.core.stream import RequestStream
from router.core.timing import Borders, Marks, borders, breakdown, served_end_s
from router.core.verdict import judge_served
from router.interface import Finished, RouterRequest


@dataclass(slots=True)
class Timers:
    """What ends a request that does not go on."""

    deadline: asyncio.TimerHandle | None = None
    gap: asyncio.TimerHandle | None = None  # tokens wait for one that has not come ...
    gap_index: int = 0  # ... this one
    peer: asyncio.TimerHandle | None = None  # the prefill worker died; perhaps the KV was committed

    def cancel(self) -> None:
        for handle in (self.deadline, self.gap, self.peer):
            if handle is not None:
                handle.cancel()
        self.deadline = self.gap = self.peer = None


@dataclass(slots=True, eq=False)
class ActiveRequest:
    """The router's state of one request in its current attempt."""

    request: RouterRequest
    key: SequenceKey  # of the current attempt
    attempts: int  # how many there were, the current one included
    prefill: Worker | None  # None: the decode worker computes the prompt
    decode: Worker
    marks: Marks
    order: TokenOrder
    timers: Timers
    stream: RequestStream
    prefix_keys: Sequence[int] = ()  # of the prompt, for the directory; none where no worker keeps prefixes
    answer: array[int] = field(default_factory=partial(array, "I"))  # every token that went to the stream; 4 bytes each
    expected_cached_tokens: int = 0  # of the prompt, by whoever computes it
    cached_tokens: int = 0
    committed: bool = False  # the decode worker owns the KV
    ended: bool = False
    stalled_since_s: float | None = None  # the client has too much unread

    @property
    def parties(self) -> tuple[Worker, ...]:
        """Everyone who was ever told of the key."""
        return (self.decode,) if self.prefill is None else (self.prefill, self.decode)

    @property
    def computing(self) -> Worker:
        """Who computes the prompt and samples token 1."""
        return self.prefill or self.decode

    @property
    def decode_goes_on(self) -> bool:
        """Whether the decode worker's tokens are no news: it is known to own the sequence."""
        return self.committed or self.prefill is None

    def may_send(self, worker: Worker, first_index: int) -> bool:
        """Whether tokens from this index on are that worker's to send."""
        if self.prefill is None:
            return worker is self.decode
        return worker is (self.prefill if first_index == 0 else self.decode)

    def stalled_for_s(self, max_unread: int, now_s: float) -> float:
        """How long the client has had at least so many tokens unread, as seen at each call."""
        if self.stream.unread_tokens < max_unread:
            self.stalled_since_s = None
        elif self.stalled_since_s is None:
            self.stalled_since_s = now_s
        return 0.0 if self.stalled_since_s is None else now_s - self.stalled_since_s

    def end_s(self, reason: FinishReason | None, num_tokens: int, now_s: float) -> float:
        """When it ended: a served one with its last token, any other now."""
        served = reason is not None and reason is not FinishReason.ABORT
        return served_end_s(self.marks, num_tokens, now_s) if served else now_s

    def borders(self, end_s: float) -> Borders:
        """The borders of its phases, should it end at that instant."""
        return borders(self.marks, end_s, handed_over=self.prefill is not None)

    def timing(self, num_tokens: int, end_s: float) -> Timing:
        """Where its time went, should it end at that instant with so many tokens."""
        decoded = self.committed or self.order.next_index > 1
        marks = self.marks
        last_s = marks.token_left_s(num_tokens) - marks.received_s if marks.times and num_tokens else None
        return breakdown(
            self.borders(end_s),
            num_tokens,
            last_s,
            prefill_worker=self.computing.id,
            decode_worker=self.decode.id if decoded else self.computing.id,
            attempts=self.attempts,
        )

    def finished(self, reason: FinishReason, num_tokens: int, now_s: float) -> Finished:
        """The end as the client sees it, with `num_tokens` that count."""
        timing = self.timing(num_tokens, self.end_s(reason, num_tokens, now_s))
        verdict = judge_served(timing, num_tokens, self.request.slo, self.marks.predicted)
        return Finished(reason, num_tokens, self.cached_tokens, timing, verdict)
