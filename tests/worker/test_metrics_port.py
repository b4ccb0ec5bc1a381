"""A worker's own /metrics: whatever a client does, it holds little of the worker, and not for long."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator

import pytest

from pdserve.v1 import worker_pb2 as pb
from worker import metrics_port
from worker.metrics_port import MAX_CONNECTIONS, MetricsPort, StatusCollector


@pytest.fixture
def port() -> Iterator[int]:
    status = pb.WorkerStatus(running_sequences=3)
    served = MetricsPort("127.0.0.1", 0, StatusCollector("decode-0", "decode", lambda: status))
    yield served.port
    served.close()


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        text: str = response.read().decode()
    return text


def connect(port: int, count: int) -> list[socket.socket]:
    return [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(count)]


def is_closed(client: socket.socket) -> bool:
    """Waits for the server's end of it."""
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True


def test_connections_beyond_the_limit_are_closed_and_take_no_thread(port: int) -> None:
    before = threading.active_count()
    clients = connect(port, MAX_CONNECTIONS)
    for _ in range(MAX_CONNECTIONS):
        (extra,) = connect(port, 1)
        assert is_closed(extra)
        extra.close()
    assert threading.active_count() - before == MAX_CONNECTIONS
    for client in clients:
        client.close()


def test_a_client_that_is_slow_is_cut_off_and_the_next_is_served(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that sends a byte now and then, which no timeout of a single read ever ends."""
    monkeypatch.setattr(metrics_port, "CONNECTION_LIMIT_S", 0.3)
    silent, *dripping = connect(port, MAX_CONNECTIONS)
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.05):
            for client in dripping:
                try:
                    client.send(b"G")
                except OSError:
                    return

    dripper = threading.Thread(target=drip)
    dripper.start()
    assert all(is_closed(client) for client in (silent, *dripping)), "the server keeps it"
    stop.set()
    dripper.join()
    assert 'pdserve_running_sequences{worker="decode-0"} 3.0' in scraped(port)
