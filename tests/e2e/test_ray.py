"""`pdserve serve --ray`: the same cluster when Ray starts it. One Ray for all of it: a start takes 10 s."""

from __future__ import annotations

import importlib.util
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.ray,
    pytest.mark.timeout(300),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is missing: pip install 'pdserve[ray]'"),
]

MARK = "PDSERVE_TEST_RAY"  # inherited by every process that a server starts, through however many others
OUTPUT_TOKENS = 16
LONG_TOKENS = 1000


@dataclass(frozen=True)
class End:
    """How a long request ended."""

    code: grpc.StatusCode | None  # None: served to its end
    at_s: float
    tokens: list[int]
    decode_worker: str


class LongRequest:
    """A request whose first tokens have come."""

    def __init__(self, server: Any, request: Any) -> None:
        self._call = server.stub.Generate(request, timeout=120)
        self._tokens: list[int] = list(next(self._call).chunk.token_ids)

    def end(self) -> End:
        code, worker = None, ""
        try:
            for message in self._call:
                self._tokens += message.chunk.token_ids
                worker = message.complete.timing.decode_worker
        except grpc.RpcError as error:
            code = error.code()
        return End(code, time.monotonic(), self._tokens, worker)


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], dict[int, str]]:
    """Everything that this test has started and that runs, Ray's own workers included: pid -> command."""
    monkeypatch.setenv(MARK, str(tmp_path))
    wanted = f"{MARK}={tmp_path}".encode()

    def find() -> dict[int, str]:
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                ours = wanted in entry.joinpath("environ").read_bytes().split(b"\0")
                command = entry.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # no process, or gone meanwhile
            if ours and command and int(entry.name) != os.getpid():
                found[int(entry.name)] = command
        return found

    return find


def test_a_cluster_through_ray_is_the_same_cluster(
    serve: Callable[..., Any],
    serve_in: Callable[..., Any],
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
    make_request: Callable[..., Any],
    make_prompts: Callable[[int, Sequence[int]], list[list[int]]],
    alive: Callable[[], dict[int, str]],
) -> None:
    """Its tokens are the colocated server's, a killed worker costs its own requests only, Ctrl-C leaves nothing."""
    prompts = make_prompts(11, (1, 16, 33, 100, 255, 600))
    requests = [make_request(ids, OUTPUT_TOKENS) for ids in prompts]
    long_request = make_request(prompts[2], LONG_TOKENS)

    def colocated_tokens() -> list[list[int]]:
        with serve_in(tmp_path_factory.mktemp("colocated"), tiny_model, "--dtype", "float32", "--prefill", "0") as one:
            return [answer.tokens for answer in one.generate_all([*requests, long_request], 4)]

    aside = ThreadPoolExecutor(1)  # while Ray, which mostly waits, starts
    colocated = aside.submit(colocated_tokens)
    with serve(tiny_model, "--dtype", "float32", "--decode", "2", "--ray") as server:
        *expected, expected_long = colocated.result()
        aside.shutdown()
        split = server.generate_all(requests * 2, 8)
        assert [answer.tokens for answer in split] == expected * 2
        assert {answer.complete.timing.prefill_worker for answer in split} == {"prefill-0"}
        assert {answer.complete.timing.decode_worker for answer in split} == {"decode-0", "decode-1"}

        ends, killed_s = ends_after_a_kill(server, long_request, "decode-0")
        lost = [end for end in ends if end.code is not None]
        assert lost, "nothing ran on the victim: the test shows nothing"
        assert {end.code for end in lost} == {grpc.StatusCode.UNAVAILABLE}
        assert max(end.at_s for end in lost) - killed_s < 2.0
        assert {end.decode_worker for end in ends if end.code is None and end.at_s > killed_s} <= {"decode-1"}
        for end in ends:
            assert end.tokens == expected_long[: len(end.tokens)], "a wrong token"
            assert end.code is not None or len(end.tokens) == LONG_TOKENS

        assert [answer.tokens for answer in server.generate_all(requests, 4)] == expected, "the rest serve on"
        server.wait_all_blocks_free()
        assert "decode-0 (pid" in server.log.read_text(), "a death is reported"

        running = alive()
        assert {one["pid"] for one in server.ready["workers"] if one["id"] != "decode-0"} <= set(running)
        for part in ("deploy.ray_cluster.keeper", "gcs_server", "raylet", "ray::WorkerHost"):
            assert any(part in command for command in running.values()), f"the search does not see {part}"
        directories = {Path(path) for path in re.findall(r"/tmp/pdray-\w+", " ".join(running.values()))}
        asked_s = time.monotonic()
    assert time.monotonic() - asked_s < 12.0, "Ctrl-C took too long"
    assert alive() == {}, "something was left behind"
    assert directories and not any(path.exists() for path in directories)


def ends_after_a_kill(server: Any, request: Any, victim: str) -> tuple[list[End], float]:
    """Six long requests, a worker killed once all of them run; how each ended, and when the kill was."""
    with ThreadPoolExecutor(6) as pool:
        running = list(pool.map(lambda _: LongRequest(server, request), range(6)))  # at once
        ends = [pool.submit(one.end) for one in running]
        killed_s = time.monotonic()
        server.kill(victim)
        return [end.result() for end in ends], killed_s
