"""The workers' own series, from the last status of each: summed over workers where labels name none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.core.messages import Histogram, Labels, Sample, StatusReport

PREFIX = "pdserve_"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_NAMES_A_WORKER = {"worker", "src", "dst"}
_MAX_WORKER_SERIES = 1000  # of one worker; more would be a bug of it, and is not shown
_HELP = {
    "step_seconds": "Duration of an engine step.",
    "batch_size": "Sequences in an engine step.",
    "kv_transfer_bytes_total": "KV bytes moved between workers.",
    "kv_transfer_failures_total": "Handoffs that failed.",
    "link_bandwidth_bytes_per_second": "Measured bandwidth of a link between two workers.",
}
_FROM_STATUS = {
    "worker_up": "Whether a worker lives; its series disappears with it.",
    "running_sequences": "Sequences running on a worker.",
    "queue_depth": "Sequences waiting on the workers of a role.",
    "kv_blocks": "KV blocks of a worker by state.",
    "kv_leaked_blocks": "KV blocks that nobody owns; always 0.",
}


@dataclass(frozen=True, slots=True)
class WorkerSnapshot:
    """One live worker as a scrape sees it."""

    worker_id: str
    role: str
    status: StatusReport | None  # None until its first one


class WorkerSource(Protocol):
    """Who knows the live workers."""

    def snapshots(self) -> list[WorkerSnapshot]: ...


@dataclass(slots=True)
class _Sum:
    """A histogram added up over workers."""

    upper_bounds: tuple[float, ...]
    counts: list[int]
    sum: float

    def add(self, other: Histogram) -> None:
        if other.upper_bounds == self.upper_bounds:  # else: workers of two versions; the first one's is shown
            self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
            self.sum += other.sum


class WorkerCollector(Collector):
    """Turns the last status of every live worker into series at each scrape."""

    def __init__(self, workers: WorkerSource, own_names: set[str]) -> None:
        self._workers = workers
        self._own = own_names | {PREFIX + name for name in _FROM_STATUS}
        self._retired_samples: dict[tuple[str, Labels], float] = {}
        self._retired_histograms: dict[tuple[str, Labels], _Sum] = {}

    def describe(self) -> list[Metric]:
        """Nothing is known before a scrape; registering must not look at workers."""
        return []

    def retire(self, worker: WorkerSnapshot) -> None:
        """Keep a lost worker's share of counters and histograms that name no worker."""
        samples, histograms = self._valid(worker)
        for sample in samples:
            if sample.name.endswith("_total") and not _names_a_worker(sample.labels):
                series = (sample.name, sample.labels)
                self._retired_samples[series] = self._retired_samples.get(series, 0.0) + sample.value
        _add_histograms(self._retired_histograms, (h for h in histograms if not _names_a_worker(h.labels)))

    def collect(self) -> Iterator[Metric]:
        snapshots = self._workers.snapshots()
        yield from _status_series(snapshots)
        samples = dict(self._retired_samples)
        histograms = {
            series: _Sum(total.upper_bounds, list(total.counts), total.sum)
            for series, total in self._retired_histograms.items()
        }
        live = {worker.worker_id for worker in snapshots}
        for worker in snapshots:
            own_samples, own_histograms = self._valid(worker)
            for sample in own_samples:
                if not _names_only(sample.labels, live):
                    continue  # a link to a worker that is gone
                series = (sample.name, sample.labels)
                samples[series] = samples.get(series, 0.0) + sample.value
            _add_histograms(histograms, (h for h in own_histograms if _names_only(h.labels, live)))
        yield from _sample_families(samples)
        yield from _histogram_families(histograms)

    def _valid(self, worker: WorkerSnapshot) -> tuple[list[Sample], list[Histogram]]:
        """Its series that can be shown: well named, not ours, not too many."""
        if worker.status is None:
            return [], []
        samples = [s for s in worker.status.samples if self._can_show(s.name, s.labels)]
        histograms = [
            h
            for h in worker.status.histograms
            if self._can_show(h.name, h.labels) and len(h.counts) == len(h.upper_bounds) + 1
        ]
        return samples[:_MAX_WORKER_SERIES], histograms[:_MAX_WORKER_SERIES]

    def _can_show(self, name: str, labels: Labels) -> bool:
        family = PREFIX + name.removesuffix("_total")
        return (
            family not in self._own
            and _NAME.fullmatch(name) is not None
            and all(_NAME.fullmatch(label) and label != "le" for label, _ in labels)
        )


def _status_series(workers: list[WorkerSnapshot]) -> Iterator[Metric]:
    up = _gauge("worker_up", ["worker", "role"])
    running = _gauge("running_sequences", ["worker"])
    queues = _gauge("queue_depth", ["role"])
    blocks = _gauge("kv_blocks", ["worker", "role", "state"])
    leaked = _gauge("kv_leaked_blocks", [])
    depth: dict[str, int] = {}
    leaks = 0
    for worker in workers:
        up.add_metric([worker.worker_id, worker.role], 1.0)
        depth.setdefault(worker.role, 0)
        if worker.status is None:
            continue
        running.add_metric([worker.worker_id], worker.status.running_sequences)
        depth[worker.role] += worker.status.queued_sequences
        leaks += worker.status.blocks.leaked
        for state in ("free", "used", "cached", "leased", "quarantined"):
            blocks.add_metric([worker.worker_id, worker.role, state], getattr(worker.status.blocks, state))
    for role, count in sorted(depth.items()):
        queues.add_metric([role], count)
    leaked.add_metric([], leaks)
    yield from (up, running, queues, blocks, leaked)


def _gauge(name: str, labels: list[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, _FROM_STATUS[name], labels=labels)


def _names_a_worker(labels: Labels) -> bool:
    return any(label in _NAMES_A_WORKER for label, _ in labels)


def _names_only(labels: Labels, live: set[str]) -> bool:
    """Whether every worker that is named lives."""
    return all(value in live for label, value in labels if label in _NAMES_A_WORKER)


def _add_histograms(totals: dict[tuple[str, Labels], _Sum], more: Iterable[Histogram]) -> None:
    for one in more:
        series = (one.name, one.labels)
        if series in totals:
            totals[series].add(one)
        else:
            totals[series] = _Sum(one.upper_bounds, list(one.counts), one.sum)


def _sample_families(samples: dict[tuple[str, Labels], float]) -> Iterator[Metric]:
    families: dict[str, Metric] = {}
    for (name, labels), value in sorted(samples.items()):
        kind = "counter" if name.endswith("_total") else "gauge"
        family = PREFIX + name.removesuffix("_total")
        metric = families.setdefault(family, Metric(family, _HELP.get(name, "Of the workers."), kind))
        metric.add_sample(PREFIX + name, dict(labels), value)
    yield from families.values()


def _histogram_families(histograms: dict[tuple[str, Labels], _Sum]) -> Iterator[Metric]:
    families: dict[str, Metric] = {}
    for (name, labels), total in sorted(histograms.items(), key=lambda item: item[0]):
        family = PREFIX + name
        metric = families.setdefault(family, Metric(family, _HELP.get(name, "Of the workers."), "histogram"))
        cumulative = list(accumulate(total.counts))
        bounds = [*map(repr, total.upper_bounds), "+Inf"]
        for bound, count in zip(bounds, cumulative, strict=True):
            metric.add_sample(f"{family}_bucket", {**dict(labels), "le": bound}, count)
        metric.add_sample(f"{family}_count", dict(labels), cumulative[-1])
        metric.add_sample(f"{family}_sum", dict(labels), total.sum)
    yield from families.values()
