"""Mock clusters under load, cancellation, deadlines and kill -9. Mock KV tells whose it is: see engine/mock.py."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
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
        expected = [server.generate(make_request(prompts[i], 60)).tokens for i in range(16)]
        for victim in ("prefill-0", "decode-0"):
            failed = fail_under_load(server, victim, [make_request(prompts[i], 60) for i in range(16)], expected)
            assert failed, "nothing ran on the victim: the test shows nothing"
            assert {code for code, _ in failed} == {grpc.StatusCode.UNAVAILABLE}
            assert max(seconds for _, seconds in failed) < 2.0
            assert [server.generate(make_request(prompts[i], 60)).tokens for i in range(8)] == expected[:8]
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
