"""A real cluster of ours in processes of its own, for measurements."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.load.target import Target, introduced, parse_target
from bench.served.server import Part, Server, stop_all
from bench.served.systems import free_port

START_LIMIT_S = 120.0


@contextmanager
def running(clusters: Mapping[str, Sequence[str]], log_dir: Path) -> Iterator[dict[str, tuple[Server, Target]]]:
    """Start `pdserve serve` with each one's arguments; all are ready when it yields, and gone behind it.

    Errors: ServerFailed, with the last words of the one that did not start.
    """
    ports = {name: (free_port(), free_port()) for name in clusters}
    servers = {name: Server(name, [_part(flags, *ports[name])], log_dir) for name, flags in clusters.items()}
    try:
        for server in servers.values():
            server.start()
            server.await_ready(START_LIMIT_S)
        yield {
            name: (server, introduced(parse_target(f"127.0.0.1:{ports[name][1]}"))) for name, server in servers.items()
        }
    finally:
        stop_all(list(servers.values()))


def _part(flags: Sequence[str], http: int, grpc: int) -> Part:
    program = str(Path(sys.executable).with_name("pdserve"))
    doors = ["--http", f"127.0.0.1:{http}", "--grpc", f"127.0.0.1:{grpc}"]
    return Part("", [program, "serve", *flags, *doors], http, "/ready")
