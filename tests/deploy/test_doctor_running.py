"""`pdserve doctor --server`: what it says of a cluster that runs, and of what is none."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from deploy.cli import main
from deploy.doctor.finding import Status, worst
from deploy.doctor.live import Expected, Scrape, Series, judge_cluster, live_links, scrape


def series(name: str, value: float, **labels: str) -> Series:
    return Series(f"pdserve_{name}", labels, value)


HEALTHY = [
    *(series("worker_up", 1, worker=f"{role}-{n}", role=role) for role in ("prefill", "decode") for n in range(2)),
    *(series("link_bandwidth_bytes_per_second", 2e9, src=f"prefill-{p}", dst=f"decode-{d}")
      for p, d in ((0, 0), (0, 1), (1, 0))),
    series("kv_leaked_blocks", 0),
    series("kv_transfer_seconds_count", 100),
    series("kv_transfer_bytes_total", 1e9, transport="shm"),
]  # fmt: skip


def test_a_healthy_cluster_is_fine() -> None:
    """A link that nothing has moved on is told, not blamed."""
    seen = Scrape(HEALTHY, 0.3)
    links = live_links(seen)
    findings = judge_cluster(seen, links)
    assert worst(findings) is Status.OK and len(links) == 4
    assert next(one for one in findings if one.check == "prefill-1 -> decode-1").found == "nothing has moved on it yet"


@pytest.mark.parametrize(
    ("more", "check", "status"),
    [
        (series("link_bandwidth_bytes_per_second", 5e8, src="prefill-1", dst="decode-1"), "prefill-1 -> decode-1",
         Status.WARN),
        (series("kv_leaked_blocks", 3), "leaked KV blocks", Status.FAIL),
        (series("kv_transfer_failures_total", 2, reason="PeerLost"), "transfers", Status.WARN),
        (series("kv_transfer_bytes_total", 5e6, transport="gloo"), "transports", Status.WARN),
    ],
)  # fmt: skip
def test_trouble_in_a_running_cluster_is_named(more: Series, check: str, status: Status) -> None:
    """A slow link, a leak, failed transfers, a pair that fell back."""
    seen = Scrape([*HEALTHY, more], 0.0)
    findings = judge_cluster(seen, live_links(seen))
    assert {one.check: one.status for one in findings if one.status is not Status.OK} == {check: status}


def test_links_are_not_judged_by_small_transfers() -> None:
    """A few kilobytes are over before a link has shown what it can."""
    slow = series("link_bandwidth_bytes_per_second", 5e8, src="prefill-1", dst="decode-1")
    seen = Scrape([*HEALTHY, slow, series("kv_transfer_seconds_count", 1e6)], 0.0)
    findings = judge_cluster(seen, live_links(seen))
    assert worst(findings) is Status.OK and any(
        "0.50 GB/s" in one.found and "too small" in one.found for one in findings
    )


def test_a_cluster_without_decode_workers_and_a_wrong_clock_are_named() -> None:
    """Nothing can be served; logs do not line up."""
    seen = Scrape([one for one in HEALTHY if one.labels.get("role") != "decode"], 90.0)
    found = {one.check: one.status for one in judge_cluster(seen, live_links(seen))}
    assert (found["workers up"], found["clock skew"]) == (Status.FAIL, Status.WARN)


def test_workers_that_are_gone_are_named() -> None:
    """Of the ready file by id; of the flags by number."""
    seen = Scrape([one for one in HEALTHY if one.labels.get("worker") not in ("prefill-1", "decode-0")], 0.0)
    ids = ["prefill-0", "prefill-1", "decode-0", "decode-1"]
    (gone, *_), (few, *_) = (
        judge_cluster(seen, [], Expected(ids)),
        judge_cluster(seen, [], Expected((), {"prefill": 2})),
    )
    assert gone.status is few.status is Status.FAIL
    assert gone.found == "prefill 1, decode 1; missing: decode-0, prefill-1"
    assert few.found == "prefill 1, decode 1; wanted: --prefill 2"
    assert judge_cluster(seen, [], Expected(("decode-1",), {"prefill": 1, "decode": 1}))[0].status is Status.OK


class Door:
    """Something that listens: answers each connection with the same bytes."""

    def __init__(self, answer: bytes) -> None:
        self._answer, self._listener = answer, socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(self._answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def http_answer(status: str, body: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"\0\0\x06\4\0\0\0\0\0\0\5\0\0@\0\r\n\r\n", "what answers there is not pdserve's HTTP door"),  # as gRPC does
        (b"", "what answers there is not"),
        (http_answer("200 OK", "other_up 1\n"), "is not of pdserve"),
        (http_answer("200 OK", "<html>"), "is not pdserve's HTTP door"),
        (http_answer("401 Unauthorized", ""), "give --api-key or PDSERVE_API_KEY"),
        (http_answer("403 Forbidden", ""), "give --api-key the server's own"),
    ],
)
def test_what_is_not_the_metrics_of_pdserve_is_one_line(
    answer: bytes, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another door, another program, another key: 3, and what to give instead."""
    with contextlib.closing(Door(answer)) as door:
        assert main(["doctor", "--server", door.address]) == 3
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and error.rstrip("\n").isprintable()


def test_a_running_cluster_is_judged_by_its_own_workers(capsys: pytest.CaptureFixture[str]) -> None:
    """With http:// too; a number of workers beside it that is not so fails."""
    lines = [
        f'pdserve_worker_up{{worker="{role}-{n}",role="{role}"}} 1' for role in ("prefill", "decode") for n in (0, 1)
    ]
    with contextlib.closing(Door(http_answer("200 OK", "\n".join(lines) + "\n"))) as door:
        assert scrape(door.address).up("decode") == ["decode-0", "decode-1"]
        assert main(["doctor", "--server", f"http://{door.address}/"]) == 0
        said = capsys.readouterr().out
        assert "cores for 4 workers" in said and "beside 4 workers that run" in said
        assert main(["doctor", "--server", door.address, "--prefill", "1"]) == 1
    assert "wanted: --prefill 1" in capsys.readouterr().out
