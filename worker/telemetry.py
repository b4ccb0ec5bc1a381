"""A worker's counters and histograms, sent whole with every status and exported by the router."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from pdserve.v1 import worker_pb2 as pb

STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
BATCH_SIZE = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)

Labels = tuple[tuple[str, str], ...]


class Histogram:
    """Counts by bucket since the worker started; `counts` has one more than the bounds."""

    def __init__(self, upper_bounds: tuple[float, ...]) -> None:
        self.upper_bounds = upper_bounds
        self.counts = [0] * (len(upper_bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.upper_bounds, value)] += 1
        self.sum += value


class Telemetry:
    """Everything a worker counts. Owned by its event loop."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, Labels], float] = {}
        self._histograms: dict[tuple[str, Labels], Histogram] = {}

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Raise a counter."""
        key = (name, tuple(sorted(labels.items())))
        self._values[key] = self._values.get(key, 0.0) + amount

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._values[(name, tuple(sorted(labels.items())))] = value

    def histogram(self, name: str, bounds: tuple[float, ...], **labels: str) -> Histogram:
        """The histogram of that name and labels, to count values in; called once for each."""
        key = (name, tuple(sorted(labels.items())))
        assert key not in self._histograms
        histogram = self._histograms[key] = Histogram(bounds)
        return histogram

    def samples(self) -> Iterable[pb.Sample]:
        return [
            pb.Sample(name=name, labels=dict(labels), value=value) for (name, labels), value in self._values.items()
        ]

    def histograms(self) -> Iterable[pb.HistogramSample]:
        return [
            pb.HistogramSample(name=name, labels=dict(labels), upper_bounds=h.upper_bounds, counts=h.counts, sum=h.sum)
            for (name, labels), h in self._histograms.items()
            if any(h.counts)
        ]
