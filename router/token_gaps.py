"""The histogram of gaps between tokens. There is one a token, and prometheus_client takes microseconds for each."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class GapHistogram(Collector):
    """A histogram without labels; written and scraped on one event loop, so it needs no lock."""

    def __init__(self, name: str, text: str, upper_bounds: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._upper_bounds = tuple(upper_bounds)
        self._counts = [0] * (len(upper_bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """`count` values of this size."""
        self._counts[bisect_left(self._upper_bounds, value)] += count
        self._sum += count * value

    def counts(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Upper bounds, and how many lie in each bucket and beyond the last bound."""
        return self._upper_bounds, tuple(self._counts)

    def collect(self) -> Iterator[Metric]:
        bounds = [*map(repr, self._upper_bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)
