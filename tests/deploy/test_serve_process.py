"""`pdserve serve` as a process: ready, answering, stopped by Ctrl-C, nothing left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy import cli
from pdserve.client import Client, GenerateOptions
from pdserve.errors import ServingError

PROFILE = {"base_s": 0.002, "per_prefill_token_s": 1e-4, "per_decode_sequence_s": 1e-4, "per_context_token_s": 0.0}


def runs(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def serving(
    tmp_path: Path, *flags: str, base_s: float = 0.002
) -> Iterator[tuple[subprocess.Popen[str], dict[str, object]]]:
    """A running mock cluster and what its ready file says."""
    profile, ready_file = tmp_path / "profile.json", tmp_path / "ready.json"
    profile.write_text(json.dumps({**PROFILE, "base_s": base_s}))
    command = [
        sys.executable, "-m", "deploy.cli", "serve", "--mock", str(profile), "--grpc", "127.0.0.1:0",
        "--http", "127.0.0.1:0", "--ready-file", str(ready_file), *flags,
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("ready: mock, gRPC 127.0.0.1:")
            yield process, json.loads(ready_file.read_text())
        finally:
            process.kill()


@pytest.mark.e2e
@pytest.mark.slow
def test_a_cluster_starts_answers_and_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The ready file holds what the contract says; Ctrl-C drains, exits 0 and leaves nothing."""
    shared_before = set(os.listdir("/dev/shm"))
    with serving(tmp_path) as (process, ready):
        assert set(ready) == {"grpc", "http", "model", "workers"}
        workers = ready["workers"]
        assert isinstance(workers, list)
        assert [(one["id"], one["role"], one["device"]) for one in workers] == [
            ("prefill-0", "prefill", "cpu"),
            ("decode-0", "decode", "cpu"),
        ]
        assert all(runs(one["pid"]) for one in workers)
        with Client(str(ready["grpc"])) as client:
            done = client.generate([5, 6, 7], GenerateOptions(max_tokens=4, ignore_eos=True))
        assert len(done.token_ids) == 4
        assert (done.timing.prefill_worker, done.timing.decode_worker) == ("prefill-0", "decode-0")
        asked = ["generate", "--server", str(ready["grpc"]), "--max-tokens", "3", "--ignore-eos", "--stats"]
        assert cli.main([*asked, "hello"]) == 0
        assert "+ 3 tokens, length; TTFT" in capsys.readouterr().err
        assert cli.main([*asked, "--temperature", "-1", "hello"]) == 2
        assert "temperature" in capsys.readouterr().err
        process.send_signal(signal.SIGINT)
        assert process.wait(30.0) == 0
    assert not any(runs(one["pid"]) for one in workers)
    assert not (tmp_path / "ready.json").exists()
    assert set(os.listdir("/dev/shm")) <= shared_before


@pytest.mark.e2e
@pytest.mark.slow
def test_a_dead_worker_is_outlived_and_a_dead_launcher_is_not(tmp_path: Path) -> None:
    """Without its prefill worker the cluster serves on, colocated; kill -9 of the launcher takes the rest along."""
    with serving(tmp_path, "--prefill", "1", "--decode", "1") as (process, ready):
        workers = ready["workers"]
        assert isinstance(workers, list)
        os.kill(workers[0]["pid"], signal.SIGKILL)
        with Client(str(ready["grpc"])) as client:
            while any(one.up for one in client.server_info().workers if one.id == "prefill-0"):
                time.sleep(0.02)  # the server tells when it has noticed; there is nothing to wait on
            done = client.generate([5, 6, 7], GenerateOptions(max_tokens=2, ignore_eos=True))
        assert (done.timing.prefill_worker, done.timing.decode_worker) == ("decode-0", "decode-0")
        process.kill()
        process.wait(10.0)
    deadline = time.monotonic() + 10.0
    while runs(workers[1]["pid"]) and time.monotonic() < deadline:
        time.sleep(0.02)  # not our child: there is nothing to wait on
    assert not runs(workers[1]["pid"])


@pytest.mark.e2e
@pytest.mark.slow
def test_the_demo_says_what_it_shows_and_nothing_else() -> None:
    """No line of any log, at its end least of all."""
    environment = {name: value for name, value in os.environ.items() if name != "PDSERVE_LOG_LEVEL"}
    command = [sys.executable, "-m", "deploy.cli", "demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    said = done.stdout.splitlines()
    assert done.returncode == 0 and said[-1].startswith("6 of 6 requests were handed over; 6 of 6 gave the tokens")
    assert "INFO" not in done.stdout + done.stderr


@pytest.mark.e2e
@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait_and_one_before_it_is_ready_is_no_success(tmp_path: Path) -> None:
    """Forced while a request runs on: exit 0 at once. Interrupted at start: exit 130. Nothing is left of either."""
    with serving(tmp_path, base_s=0.02) as (process, ready):
        workers = ready["workers"]
        assert isinstance(workers, list)
        with Client(str(ready["grpc"])) as client:
            events = client.stream([5, 6, 7], GenerateOptions(max_tokens=1900, ignore_eos=True))
            next(iter(events))
            process.send_signal(signal.SIGINT)
            asked_s = time.monotonic()
            with pytest.raises(ServingError):
                while True:  # until new requests are refused: the first signal has been heard
                    client.generate([1], GenerateOptions(max_tokens=1))
            process.send_signal(signal.SIGINT)
            assert process.wait(30.0) == 0
        assert time.monotonic() - asked_s < 9.0, "it waited for the request, 10 s"
        assert not any(runs(one["pid"]) for one in workers)
    command = [sys.executable, "-m", "deploy.cli", "serve", "--mock", str(tmp_path / "profile.json"),
               "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "starting decode-0" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        process.stderr.read()
        assert process.wait(30.0) == 130
