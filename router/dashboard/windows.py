"""Counts of the last quarter of an hour, in buckets of five seconds, by SLO class. Memory is fixed when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from pdserve.slo import Blame
from router.dashboard.sketch import NUM_BINS, Counts, bin_of
from router.record import Outcome, RequestRecord

BUCKET_S = 5.0
NUM_BUCKETS = 181  # 180 that are over, and the one that is being filled


class Count(IntEnum):
    """What is counted of each class; blames and outcomes follow."""

    JUDGED = 0  # ended with a verdict
    GOOD = 1  # met everything
    MET_TTFT = 2
    MET_TPOT = 3
    PROMPT_TOKENS = 4
    CACHED_TOKENS = 5
    COMPLETION_TOKENS = 6


class Latency(IntEnum):
    """What is sketched of each class."""

    TTFT = 0
    TPOT = 1


BLAME_AT = {blame: len(Count) + index for index, blame in enumerate(Blame)}  # misses only; NONE: no phase was slow
OUTCOME_AT = {outcome: len(Count) + len(Blame) + index for index, outcome in enumerate(Outcome)}
_NUM_COUNTS = len(Count) + len(Blame) + len(Outcome)


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time added up."""

    seconds: float  # that it covers; less than was asked for when it began later
    counts: NDArray[np.int64]  # [classes, counts]
    latencies: Counts  # [classes, latencies, bins]


class Windows:
    """Fed with every record; belongs to one loop. Instants are those of one monotonic clock."""

    def __init__(self, num_classes: int, now_s: float) -> None:
        self._counts = np.zeros((NUM_BUCKETS, num_classes, _NUM_COUNTS), np.int64)
        self._latencies = np.zeros((NUM_BUCKETS, num_classes, len(Latency), NUM_BINS), np.uint32)
        self._started_s = now_s
        self._newest = _bucket_of(now_s)

    @property
    def newest(self) -> int:
        """The number of the bucket that is being filled; numbers only grow."""
        return self._newest

    def advance(self, now_s: float) -> None:
        """Let time pass: buckets that come are empty, those that are too old are forgotten."""
        bucket = _bucket_of(now_s)
        if bucket > self._newest:
            for index in range(max(self._newest + 1, bucket - NUM_BUCKETS + 1), bucket + 1):
                self._counts[index % NUM_BUCKETS] = 0
                self._latencies[index % NUM_BUCKETS] = 0
            self._newest = bucket

    def add(self, index: int, record: RequestRecord, now_s: float) -> None:
        """Count one record in class `index`."""
        self.advance(now_s)
        slot = self._newest % NUM_BUCKETS
        counts = self._counts[slot, index]
        counts[OUTCOME_AT[record.outcome]] += 1
        counts[Count.PROMPT_TOKENS] += record.prompt_tokens
        counts[Count.CACHED_TOKENS] += record.cached_tokens
        counts[Count.COMPLETION_TOKENS] += record.completion_tokens
        if record.verdict is not None:
            good = record.verdict.met_ttft and record.verdict.met_tpot
            counts[Count.JUDGED] += 1
            counts[Count.GOOD] += good
            counts[Count.MET_TTFT] += record.verdict.met_ttft
            counts[Count.MET_TPOT] += record.verdict.met_tpot
            if not good:
                counts[BLAME_AT[record.verdict.blame]] += 1
        if record.first_token_s is not None:
            self._latencies[slot, index, Latency.TTFT, bin_of(record.timing.ttft_s)] += 1
            if record.completion_tokens > 1:
                self._latencies[slot, index, Latency.TPOT, bin_of(record.timing.tpot_s)] += 1

    def last(self, seconds: float, now_s: float) -> Span:
        """The last `seconds`, rounded up to what the bucket being filled has had of its time."""
        self.advance(now_s)
        number = min(NUM_BUCKETS, round(seconds / BUCKET_S) + 1)
        since_s = max((self._newest - number + 1) * BUCKET_S, self._started_s)
        return self._sum(range(self._newest - number + 1, self._newest + 1), max(now_s - since_s, 1e-3))

    def bucket(self, number: int) -> Span | None:
        """One bucket that is over; None when it is forgotten or has not ended."""
        if not self._newest - NUM_BUCKETS < number < self._newest:
            return None
        return self._sum(range(number, number + 1), BUCKET_S)

    def first(self) -> int:
        """The oldest bucket that is remembered."""
        return max(_bucket_of(self._started_s), self._newest - NUM_BUCKETS + 1)

    def _sum(self, numbers: range, seconds: float) -> Span:
        slots = [number % NUM_BUCKETS for number in numbers]
        latencies: Counts = self._latencies[slots].sum(axis=0, dtype=np.uint32)
        return Span(seconds, self._counts[slots].sum(axis=0), latencies)


def _bucket_of(now_s: float) -> int:
    return int(now_s // BUCKET_S)
