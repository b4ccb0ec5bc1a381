"""What watching costs the router: processor time a request and a token; metrics, request log and traces on and off.

    python -m bench.observability [--requests 600] [--streams 16] [--tokens 256] [--rounds 5]

The router of bench/router_stream.py behind its gRPC door, in front of workers that compute nothing; the collector of
the traces is a bare gRPC server in this process. Measured is the processor time of the whole router process, the
threads that write log and spans included, until the last of them has left: of requests of two tokens, and of streams
flat out. Rounds take the variants in turn; of each the round with the least time counts. Ratios are to "nothing", whose
metrics do nothing (no product setting).
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from tempfile import TemporaryDirectory
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from bench.arguments import positive
from bench.router_stream import Load, drive, process
from bench.step_worker import SECRET, run_workers
from bench.stream_servers import serve_router
from router.background import BackgroundSink
from router.core.core import Core
from router.metrics import RouterMetrics
from router.record import RequestRecord
from router.request_log import RequestLog
from router.tracing import trace_sink

NOTHING, METRICS, LOG, TRACES = "nothing", "metrics", "metrics and log", "metrics and traces"
VARIANTS = (NOTHING, METRICS, LOG, TRACES)


class SilentMetrics(RouterMetrics):
    """Counts nothing."""

    def accepted(self, prompt_tokens: int) -> None: ...

    def generated(self, num_tokens: int) -> None: ...

    def first_token(self, ttft_s: float) -> None: ...

    def more_tokens(self, gap_s: float, num_tokens: int) -> None: ...

    def cache_hit(self, num_tokens: int) -> None: ...

    def transferred(self, seconds: float) -> None: ...

    def record(self, record: RequestRecord) -> None: ...


def run_variant(addresses: list[str], variant: str, log_path: str, endpoint: str, pipe: Connection) -> None:
    """A router that watches so much."""
    sinks: list[BackgroundSink] = []
    if variant == LOG:
        sinks.append(BackgroundSink("request_log", RequestLog(log_path)))
    elif variant == TRACES:
        sinks.append(trace_sink(endpoint, "model"))

    def make() -> Core:
        return Core(addresses, SECRET, sinks=sinks, metrics=SilentMetrics if variant == NOTHING else RouterMetrics)

    def settle() -> None:
        for sink in sinks:
            sink.close()
            assert not sink.num_lost, f"{sink.num_lost} records were lost: the figures are too good"

    asyncio.run(serve_router(make, pipe, settle))


class Collector(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]  # grpc has no types
    """Counts the spans that it gets."""

    def __init__(self) -> None:
        self.num_spans = 0

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.num_spans += sum(len(scope.spans) for one in request.resource_spans for scope in one.scope_spans)
        return trace_service_pb2.ExportTraceServiceResponse()


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    """A collector, and where it listens."""
    collector, server = Collector(), grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def processor_s(variant: str, load: Load, log_path: str, endpoint: str) -> float:
    """Of one router under one load."""
    with process(run_workers, load.step_s) as workers:
        settings = (workers.recv(), variant, log_path, endpoint)
        with process(run_variant, *settings) as server:
            ports = server.recv()
            asyncio.run(drive("grpc", ports, load, lambda: server.send("begin")))
            server.send("end")
            used_s: float = server.recv()
            workers.send("end")
            workers.recv()
            return used_s


def compare(load: Load, unit: str, per: int, rounds: int, log_path: str, endpoint: str) -> None:
    """Every variant in turn, round by round; the least of each, and its ratio to nothing."""
    found: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(rounds):
        for variant, times in found.items():
            times.append(processor_s(variant, load, log_path, endpoint))
    floor_s = min(found[NOTHING])
    for variant, times in found.items():
        best_us, worst_us = 1e6 * min(times) / per, 1e6 * max(times) / per
        ratio, added_us = min(times) / floor_s, 1e6 * (min(times) - floor_s) / per
        spread = f"{best_us:8.1f} us/{unit} (worst {worst_us:.1f})"
        print(f"{variant:<20} {spread}  {ratio:5.3f} x nothing  {added_us:+.1f} us", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=positive, default=600, help="requests of two tokens, over all streams")
    parser.add_argument("--streams", type=positive, default=16)
    parser.add_argument("--tokens", type=positive, default=256, help="of each stream, flat out")
    parser.add_argument("--rounds", type=positive, default=5)
    args = parser.parse_args()
    with TemporaryDirectory() as directory, collecting() as (collector, endpoint):
        short = Load(args.streams, 2, -(-args.requests // args.streams), 0.0)
        log_path = f"{directory}/requests.jsonl"
        compare(short, "request", short.total_requests, args.rounds, log_path, endpoint)
        flat = Load(args.streams, args.tokens, 1, 0.0)
        compare(flat, "token", args.streams * args.tokens, args.rounds, log_path, endpoint)
        print(f"the collector got {collector.num_spans:,} spans")


if __name__ == "__main__":
    main()
