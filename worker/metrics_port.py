"""A worker's own /metrics, on a port and a thread of its own: what the router shows of it, from its last status."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, disable_created_metrics, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from pdserve.v1 import worker_pb2 as pb

PREFIX = "pdserve_"
_STATES = ("free", "used", "cached", "leased", "quarantined")


class StatusCollector(Collector):
    """Series of one worker, under the names that the router gives them."""

    def __init__(self, worker_id: str, role: str, status: Callable[[], pb.WorkerStatus]) -> None:
        """`status` is called on the server's thread and must give a message that nobody changes any more."""
        self._worker_id, self._role, self._status = worker_id, role, status

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        status, worker = self._status(), {"worker": self._worker_id}
        role = {"role": self._role}
        yield _one("worker_up", {**worker, **role}, 1)
        yield _one("running_sequences", worker, status.running_sequences)
        yield _one("queue_depth", role, status.queued_sequences)
        yield _one("kv_leaked_blocks", {}, status.blocks.leaked)
        blocks = Metric(PREFIX + "kv_blocks", "KV blocks by state.", "gauge")
        for state in _STATES:
            blocks.add_sample(PREFIX + "kv_blocks", {**worker, **role, "state": state}, getattr(status.blocks, state))
        yield blocks
        yield from _samples(status)
        yield from _histograms(status)


def _one(name: str, labels: dict[str, str], value: float) -> Metric:
    metric = Metric(PREFIX + name, "Of this worker.", "gauge")
    metric.add_sample(PREFIX + name, labels, value)
    return metric


def _samples(status: pb.WorkerStatus) -> Iterator[Metric]:
    families: dict[str, Metric] = {}
    for sample in status.samples:
        family = PREFIX + sample.name.removesuffix("_total")
        kind = "counter" if sample.name.endswith("_total") else "gauge"
        metric = families.setdefault(family, Metric(family, "Of this worker.", kind))
        metric.add_sample(PREFIX + sample.name, dict(sample.labels), sample.value)
    yield from families.values()


def _histograms(status: pb.WorkerStatus) -> Iterator[Metric]:
    families: dict[str, Metric] = {}
    for one in status.histograms:
        family, labels = PREFIX + one.name, dict(one.labels)
        metric = families.setdefault(family, Metric(family, "Of this worker.", "histogram"))
        cumulative = list(accumulate(one.counts))
        for bound, count in zip([*map(repr, one.upper_bounds), "+Inf"], cumulative, strict=True):
            metric.add_sample(f"{family}_bucket", {**labels, "le": bound}, count)
        metric.add_sample(f"{family}_count", labels, cumulative[-1])
        metric.add_sample(f"{family}_sum", labels, one.sum)
    yield from families.values()


class MetricsPort:
    """The server, listening until `close`."""

    def __init__(self, host: str, port: int, collector: StatusCollector) -> None:
        """Port 0 picks a free one. OSError when it is taken."""
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        registry.register(collector)
        try:
            served: tuple[WSGIServer, Thread] = start_http_server(port, host, registry)
        except (OSError, OverflowError) as error:
            raise OSError(f"cannot listen on {host}:{port} for the worker's metrics: {error}") from None
        self._server, self._thread = served
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop listening; takes up to half a second, so call it in a thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
