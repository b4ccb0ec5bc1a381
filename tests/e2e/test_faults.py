"""Mock clusters under load, cancellation, deadlines and kill -9. Mock KV tells whose it is: see engine/mock.py."""

from __future__ import annotations

import json
import random
import re
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

pytestmark = pytest.mark.e2e

MOCK = ("--max-model-len", "1024", "--kv-bytes", "4M", "--block-size", "8", "--max-num-batched-tokens", "256")


def status_of(call: Callable[[], Any]) -> grpc.StatusCode | None:
    """None when it was served."""
    try:
        call()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return None


@pytest.fixture
def prompts(make_prompts: Any) -> list[list[int]]:
    rng = random.Random(5)
    found: list[list[int]] = make_prompts(6, [rng.randint(1, 600) for _ in range(64)])
    return found


def test_eight_and_eight_under_load_keep_every_word_in_its_place(
    serve: Callable[..., Any], mock_profile: Path, make_request: Callable[..., Any], prompts: list[list[int]]
) -> None:
    """A mock sequence fails when any word of its KV is another's; none does, and one engine gives the same tokens."""
    rng = random.Random(7)
    requests = [make_request(ids, rng.randint(1, 24)) for ids in prompts * 4]
    with serve("", "--mock", str(mock_profile), "--prefill", "8", "--decode", "8", *MOCK) as server:
        split = server.generate_all(requests, 48)
        used = {answer.complete.timing.prefill_worker for answer in split}
        used |= {answer.complete.timing.decode_worker for answer in split if len(answer.tokens) > 1}
        assert len(used) == 16, f"only {sorted(used)} worked"
        server.wait_all_blocks_free()
    with serve("", "--mock", str(mock_profile), "--prefill", "0", *MOCK) as server:
        one = server.generate_all(requests[:64], 16)
    assert [answer.tokens for answer in split[:64]] == [answer.tokens for answer in one]


def test_clients_that_leave_at_any_moment_leave_nothing_behind(
    serve: Callable[..., Any], mock_profile: Path, make_request: Callable[..., Any], prompts: list[list[int]]
) -> None:
    with serve("", "--mock", str(mock_profile), "--decode", "2", "--kv-transport", "gloo", *MOCK) as server:
        expected = server.generate_all([make_request(ids, 20) for ids in prompts[:8]], 4)

        def leave(number: int) -> None:
            rng = random.Random(number)
            call = server.stub.Generate(make_request(prompts[number % 64], 200), timeout=60)
            killer = threading.Timer(rng.random() * 0.4, call.cancel)
            killer.start()
            code = status_of(lambda: list(call))
            killer.join()
            assert code in (None, grpc.StatusCode.CANCELLED)

        with ThreadPoolExecutor(24) as pool:
            staying = [pool.submit(server.generate, make_request(ids, 20)) for ids in prompts[:8]]
            list(pool.map(leave, range(96)))
            assert [one.result().tokens for one in staying] == [one.tokens for one in expected]
        server.wait_all_blocks_free()


def test_a_deadline_ends_a_request_in_time_and_frees_its_blocks(
    serve: Callable[..., Any], mock_profile: Path, make_request: Callable[..., Any], prompts: list[list[int]]
) -> None:
    with serve("", "--mock", str(mock_profile), *MOCK) as server:

        def late(number: int) -> float:
            """Seconds after its deadline that a request which can never make it ends."""
            limit_s = 0.02 + 0.01 * number
            start = time.monotonic()
            code = status_of(lambda: server.generate(make_request(prompts[number], 400), timeout_s=limit_s))
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
            return time.monotonic() - start - limit_s

        with ThreadPoolExecutor(16) as pool:
            assert max(pool.map(late, range(48))) < 2.0
        server.wait_all_blocks_free()
        assert len(server.generate(make_request(prompts[0], 5)).tokens) == 5


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_a_killed_worker_ends_its_requests_quickly_and_the_rest_serve_on(
    serve: Callable[..., Any],
    tmp_path: Path,
    make_request: Callable[..., Any],
    prompts: list[list[int]],
    transport: str,
) -> None:
    profile = (
        tmp_path / "busy.json"
    )  # prompts queue, uncached, on both prefill workers, so that whoever is killed is at work
    coefficients = {"per_prefill_token_s": 2e-4, "per_decode_sequence_s": 5e-5, "per_context_token_s": 0.0}
    profile.write_text(json.dumps({"base_s": 0.004, **coefficients}))
    flags = ("--prefill", "2", "--decode", "2", "--kv-transport", transport, "--no-enable-prefix-caching", *MOCK)
    with serve("", "--mock", str(profile), *flags) as server:
        requests = [make_request(prompts[i], 60) for i in range(16)]
        expected = [answer.tokens for answer in server.generate_all(requests, 8)]
        for victim in ("prefill-0", "decode-0"):
            failed = fail_under_load(server, victim, requests, expected)
            assert failed, "nothing ran on the victim: the test shows nothing"
            assert {code for code, _ in failed} == {grpc.StatusCode.UNAVAILABLE}
            assert max(seconds for _, seconds in failed) < 2.0
            assert [answer.tokens for answer in server.generate_all(requests[:8], 4)] == expected[:8]
            server.wait_all_blocks_free()
            assert not [name for name in server.metrics() if f'worker="{victim}"' in name], "its series stay"


def fail_under_load(
    server: Any, victim: str, requests: list[Any], expected: list[list[int]]
) -> list[tuple[grpc.StatusCode, float]]:
    """Kill a worker under 24 clients; status and seconds after the kill of each request that failed."""
    late = threading.Event()  # set long after the death: from then on every request is served
    ends: list[tuple[grpc.StatusCode | None, float]] = []

    def one(number: int) -> None:
        def call() -> None:
            answer = server.generate(requests[number % 16])
            assert answer.tokens == expected[number % 16], "a wrong token with status OK"

        began_late = late.is_set()
        code = status_of(call)
        assert code is None or not began_late, "a request that came after the death failed"
        ends.append((code, time.monotonic()))

    with ThreadPoolExecutor(24) as pool:
        running = [pool.submit(one, number) for number in range(80)]
        time.sleep(0.4)
        server.kill(victim, signal.SIGKILL)
        killed_s = time.monotonic()
        time.sleep(2.0)
        late.set()
        for future in running:
            future.result()
    return [(code, at - killed_s) for code, at in ends if code is not None]


def over_http(server: Any, ids: list[int], stream: bool) -> str:
    """How a completion of 60 tokens ended: "OK", or the status and the words of its error."""
    body = {"prompt": ids, "max_tokens": 60, "ignore_eos": True, "temperature": 0, "stream": stream}
    request = urllib.request.Request(
        f"http://{server.ready['http']}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            text = response.read().decode()
    except urllib.error.HTTPError as error:
        return f"{error.code} {json.loads(error.read())['error']['message']}"
    if not stream:
        return "OK" if json.loads(text)["usage"]["completion_tokens"] == 60 else "short"
    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    return "OK" if events[-1] == "[DONE]" else f"200 {json.loads(events[-1])['error']['message']}"


def page(server: Any, path: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://{server.ready['http']}{path}", timeout=5) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_with_every_worker_killed_each_request_is_told_why_and_serve_ends_with_1(
    serve: Callable[..., Any], mock_profile: Path, make_request: Callable[..., Any], prompts: list[list[int]]
) -> None:
    """Through both doors, under load, at once: nothing hangs, nothing is served wrongly, nothing is left."""
    with serve("", "--mock", str(mock_profile), *MOCK, stop=False) as server:
        expected = [server.generate(make_request(prompts[n], 60)).tokens for n in range(4)]
        assert page(server, "/ready") == (200, {"status": "ready"})
        dead = threading.Event()

        def ask(number: int) -> tuple[bool, str]:
            began_dead = dead.is_set()
            if number % 3:
                return began_dead, over_http(server, prompts[number % 4], stream=number % 3 == 2)
            try:
                answer = server.generate(make_request(prompts[number % 4], 60), timeout_s=20)
            except grpc.RpcError as error:
                return began_dead, f"{error.code().name} {error.details()}"
            assert answer.tokens == expected[number % 4], "a wrong token with status OK"
            return began_dead, "OK"

        with ThreadPoolExecutor(18) as pool:
            running = [pool.submit(ask, number) for number in range(60)]
            time.sleep(0.3)
            for worker in server.ready["workers"]:
                server.kill(worker["id"])
            while page(server, "/ready")[0] == 200:
                time.sleep(0.01)  # noticed at once, and nothing else tells
            dead.set()
            after = [pool.submit(ask, number) for number in range(30)]
            ends = {future.result() for future in [*running, *after]}
        assert {said for began_dead, said in ends if began_dead} == {
            "UNAVAILABLE no decode worker is up", "503 no decode worker is up",
        }  # fmt: skip
        allowed = re.compile(r"OK|(UNAVAILABLE|503|200) (\w+ worker \w+-0 was lost|no decode worker is up)")
        assert all(allowed.fullmatch(said) for _, said in ends), ends
        assert any("was lost" in said for _, said in ends), "nothing ran on the victims: the test shows nothing"
        reason = "no decode worker is up (decode-0, prefill-0 lost)"
        assert page(server, "/ready") == (503, {"status": "not ready", "reason": reason})
        assert page(server, "/health") == (200, {"status": "ok", "ready": False, "reason": reason})
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 1
        log = server.log.read_text()
        for worker in server.ready["workers"]:
            assert f"{worker['id']} (pid {worker['pid']}) is gone: killed by SIGKILL" in log
        assert f"nothing was served any more: {reason}" in log
