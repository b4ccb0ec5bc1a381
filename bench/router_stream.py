"""What the router costs a token and a request: workers that compute nothing, beside bare servers of the same stacks.

    python -m bench.router_stream [--streams 1 16 64] [--tokens 512] [--rounds 3] [--doors grpc text http]

Workers, router and client are processes, as they are in service; the router is the real core behind its real doors. A
bare server (grpc.aio; starlette on uvicorn) has its messages ready, writes one a token, and does nothing else: no
worker, no session, no text. Tokens come in steps, one token of every stream each. Printed for each door and number of
streams, flat out and with steps paced at --step-s: tokens/s, messages a token, processor time of the server a token,
and the time from a token's step to its arrival at the client (perf_counter is one clock for all processes of a Linux
machine). Then requests of two tokens, --streams at a time: streams/s and processor time a request. Ratios are to the
bare server of the same protocol in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import grpc

from bench.arguments import positive
from bench.step_worker import run_workers
from bench.stream_clients import Arrival, Read, grpc_reader, grpc_tokens, http_reader, http_tokens
from bench.stream_servers import run_bare_grpc, run_bare_http, run_router

BARE_SERVERS = {"bare grpc": run_bare_grpc, "bare http": run_bare_http}
BARE_OF = {"grpc": "bare grpc", "text": "bare grpc", "http": "bare http"}
DOORS = tuple(BARE_OF)
SHORT_TOKENS = 2  # of a request that is measured as a whole


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent to one server."""

    streams: int
    tokens: int  # each stream
    requests: int  # each stream, one after the other
    step_s: float

    @property
    def total_requests(self) -> int:
        return self.streams * self.requests


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one server."""

    tokens_per_s: float
    requests_per_s: float
    messages_per_token: float
    processor_s: float  # of the server, all of it
    delay_p50_s: float  # a token's step to its arrival
    delay_p99_s: float
    request_p50_s: float  # sent to ended


@contextmanager
def process(target: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    """A process that is told things and tells things; ended on the way out."""
    context = multiprocessing.get_context("spawn")  # never fork after grpc
    ours, theirs = context.Pipe()
    child = context.Process(target=target, args=(*arguments, theirs))
    child.start()
    try:
        yield ours
        with suppress(OSError):
            ours.send("go")  # for those who wait to be the last
        child.join(30)
    finally:
        child.terminate()


async def drive(kind: str, ports: list[int], load: Load, begin: Callable[[], None]) -> tuple[float, dict[str, Any]]:
    """Elapsed seconds, and every request's arrivals. Warm before `begin` is called."""
    streams: dict[str, list[Arrival]] = {}

    async def run(read: Read) -> float:
        async def one_stream(number: int) -> None:
            for turn in range(load.requests):
                name = f"{number:03}-{turn:05}-{'r' * 26}"
                streams[name] = [Arrival(time.perf_counter(), b""), *await read(name, load.tokens)]

        await asyncio.gather(*(read(f"warm-{n}", 20) for n in range(4)))
        begin()
        begin_s = time.perf_counter()
        await asyncio.gather(*(one_stream(number) for number in range(load.streams)))
        return time.perf_counter() - begin_s

    if kind.endswith("http"):
        return await run(http_reader(ports[-1])), streams
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ports[0]}") as channel:
        return await run(grpc_reader(channel, text=kind == "text")), streams


def one_run(kind: str, load: Load) -> Sample:
    """Start what it needs, drive it, end it."""

    def measure(server: Connection, finish: Callable[[], dict[str, list[float]]]) -> Sample:
        ports = server.recv()
        elapsed_s, streams = asyncio.run(drive(kind, ports, load, lambda: server.send("begin")))
        server.send("end")
        processor_s = server.recv()
        return summarize(kind, load, elapsed_s, processor_s, streams, finish())

    if kind in BARE_SERVERS:
        with process(BARE_SERVERS[kind], load.step_s) as server:
            return measure(server, server.recv)
    with process(run_workers, load.step_s) as workers, process(run_router, workers.recv()) as server:

        def steps() -> dict[str, list[float]]:
            workers.send("end")
            made_s: dict[str, list[float]] = workers.recv()
            return made_s

        return measure(server, steps)


def summarize(
    kind: str, load: Load, elapsed_s: float, processor_s: float, streams: dict[str, Any], made_s: dict[str, Any]
) -> Sample:
    tokens = http_tokens if kind.endswith("http") else grpc_tokens
    delays, requests, num_messages = [], [], 0
    for name, (sent, *arrivals) in streams.items():
        num_messages += len(arrivals)
        requests.append(arrivals[-1].at_s - sent.at_s)
        delays += [at_s - step_s for at_s, step_s in zip(tokens(arrivals), made_s[name], strict=True)]
    delays.sort()
    total = load.total_requests * load.tokens
    return Sample(
        tokens_per_s=total / elapsed_s,
        requests_per_s=load.total_requests / elapsed_s,
        messages_per_token=num_messages / total,
        processor_s=processor_s,
        delay_p50_s=delays[len(delays) // 2],
        delay_p99_s=delays[int(0.99 * (len(delays) - 1))],
        request_p50_s=sorted(requests)[len(requests) // 2],
    )


def best(samples: list[Sample]) -> Sample:
    """The round that was disturbed least: the fewest processor seconds."""
    return min(samples, key=lambda sample: sample.processor_s)


def show_stream(label: str, sample: Sample, bare: Sample, load: Load) -> str:
    total = load.streams * load.tokens
    added_ms = 1e3 * (sample.delay_p50_s - bare.delay_p50_s)
    return (
        f"{label:<26} {sample.tokens_per_s:>7,.0f} tok/s ({sample.tokens_per_s / bare.tokens_per_s:5.2f} x bare)"
        f"  {sample.messages_per_token:5.2f} msg/tok"
        f"  {1e6 * sample.processor_s / total:5.0f} us/tok"
        f"  delay p50 {1e3 * sample.delay_p50_s:7.2f} ms  p99 {1e3 * sample.delay_p99_s:7.2f} ms"
        f"  added p50 {added_ms:+.2f} ms"
    )


def show_requests(label: str, sample: Sample, bare: Sample, load: Load) -> str:
    each_us = 1e6 * sample.processor_s / load.total_requests
    return (
        f"{label:<26} {sample.requests_per_s:6.0f} streams/s"
        f" ({sample.requests_per_s / bare.requests_per_s:5.2f} x bare)"
        f"  {each_us:6.0f} us/request (bare {1e6 * bare.processor_s / load.total_requests:4.0f})"
        f"  p50 {1e3 * sample.request_p50_s:6.2f} ms (bare {1e3 * bare.request_p50_s:5.2f})"
    )


Show = Callable[[str, Sample, Sample, Load], str]


def compare(doors: list[str], load: Load, label: str, rounds: int, show: Show) -> None:
    bare = dict.fromkeys(BARE_OF[door] for door in doors)
    samples: dict[str, list[Sample]] = {kind: [] for kind in (*doors, *bare)}
    for _ in range(rounds):
        for kind, found in samples.items():  # in turn, so that drift hits all
            found.append(one_run(kind, load))
    for kind, found in samples.items():
        floor = best(samples[BARE_OF.get(kind, kind)])
        print(show(f"{kind}, {load.streams} x {label}", best(found), floor, load), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=positive, nargs="+", default=[1, 16, 64])
    parser.add_argument("--doors", nargs="+", choices=DOORS, default=list(DOORS))
    parser.add_argument("--tokens", type=positive, default=512)
    parser.add_argument("--requests", type=int, default=400, help="requests of two tokens, over all streams; 0: none")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--step-s", type=float, default=0.02)
    args = parser.parse_args()
    for streams in args.streams:
        flat = Load(streams, args.tokens, 1, 0.0)
        paced = Load(streams, max(50, args.tokens // 4), 1, args.step_s)
        compare(args.doors, flat, "flat out", args.rounds, show_stream)
        compare(args.doors, paced, f"{1e3 * args.step_s:g} ms steps", args.rounds, show_stream)
        if args.requests:
            short = Load(streams, SHORT_TOKENS, -(-args.requests // streams), 0.0)
            compare(args.doors, short, "requests", args.rounds, show_requests)


if __name__ == "__main__":
    main()
