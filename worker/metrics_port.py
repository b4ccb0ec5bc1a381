"""A worker's own /metrics, on a port and a thread of its own: what the router shows of it, from its last status."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, disable_created_metrics, make_wsgi_app
from prometheus_client.core import Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from pdserve.v1 import worker_pb2 as pb

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 16  # at once; Prometheus has one, which it opens for each scrape
CONNECTION_LIMIT_S = 5.0  # from its beginning to its end
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


class _Server(ThreadingWSGIServer):
    """A thread per connection: few at once, each for a short time, so that no client can hold what it does not use."""

    request_queue_size = MAX_CONNECTIONS

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self._began_s: dict[socket.socket, float] = {}  # of each connection; the oldest first
        super().__init__(address, handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether it is served; else it is closed."""
        return len(self._began_s) < MAX_CONNECTIONS

    def process_request(self, request: Any, client_address: Any) -> None:
        self._began_s[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._began_s.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Twice a second: what took too long is cut off; its thread then ends."""
        now_s = time.monotonic()
        for request, began_s in self._began_s.copy().items():
            if now_s - began_s > CONNECTION_LIMIT_S:
                with contextlib.suppress(OSError):  # it ends just now
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a connection to the metrics broke", exc_info=True)


class _Handler(WSGIRequestHandler):
    timeout = CONNECTION_LIMIT_S  # of each read and write

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: Prometheus asks for ever."""


class MetricsPort:
    """The server, listening until `close`."""

    def __init__(self, host: str, port: int, collector: StatusCollector) -> None:
        """Port 0 picks a free one. OSError when it is taken."""
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        registry.register(collector)
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
            server_class = type("_ServerOfFamily", (_Server,), {"address_family": family})
            self._server: WSGIServer = make_server(host, port, make_wsgi_app(registry), server_class, _Handler)
        except (OSError, OverflowError) as error:
            raise OSError(f"cannot listen on {host}:{port} for the worker's metrics: {error}") from None
        self._thread = Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop listening; takes up to half a second, so call it in a thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
