"""The whole served benchmark, on our own servers with the demo model."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.served.process_tree import read_stat, tree_of
from deploy.models import demo_model_directory

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def command(*flags: str) -> list[str]:
    model = ["--model", str(demo_model_directory()), "--dtype", "float32"]
    return [sys.executable, "-m", "bench.served", *model, "--workload", "40x6", "--rounds", "1", *flags]


def server_flags(*flags: str) -> list[str]:
    """More flags for `pdserve serve`; little KV memory, which takes time to get."""
    return ["--pdserve-args", " ".join(["--kv-bytes 64M", *flags])]


def test_split_and_colocated_are_measured_and_agree() -> None:
    """Both answer every request, no process is left, and in float32 their tokens are the same."""
    systems = ["--systems", "pdserve-split", "pdserve-colocated", "vllm-split"]
    done = subprocess.run(
        command(*systems, "--concurrency", "1", "3", "--requests", "5", *server_flags()),
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "vllm-split left out" in done.stdout
    assert "pdserve-colocated and pdserve-split: 4 of 4 answers equal, 96 of 96 tokens" in done.stdout
    rates = re.findall(r"^(pdserve-\w+) +40x6 conc (\d) +([\d.]+) req/s.* errors 0$", done.stdout, re.MULTILINE)
    assert [(system, conc) for system, conc, _ in rates] == [
        ("pdserve-split", "1"), ("pdserve-split", "3"), ("pdserve-colocated", "1"), ("pdserve-colocated", "3"),
    ]  # fmt: skip
    assert all(float(rate) > 0 for *_, rate in rates)
    assert re.search(r"cores: pdserve [\d.]+, prefill_worker [\d.]+, decode_worker [\d.]+ \| client", done.stdout)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_it_is_stopped(number: signal.Signals, tmp_path: Path) -> None:
    """Stopped while one (mock) server is parked and another starts: both are ended, exit code 130."""
    profile = tmp_path / "profile.json"
    steps = {"base_s": 0.002, "per_prefill_token_s": 1e-4, "per_decode_sequence_s": 1e-4, "per_context_token_s": 0.0}
    profile.write_text(json.dumps(steps))
    systems = ["--systems", "pdserve-colocated", "pdserve-split"]
    with (tmp_path / "out").open("w") as out:
        bench = subprocess.Popen(
            command(*systems, *server_flags("--mock", str(profile))), stdout=out, stderr=subprocess.STDOUT
        )
    deadline_s = time.monotonic() + 90
    while "colocated was ready" not in (tmp_path / "out").read_text():
        assert bench.poll() is None and time.monotonic() < deadline_s, (tmp_path / "out").read_text()
        time.sleep(0.1)
    while len(tree := tree_of(bench.pid)) < 4:  # the benchmark, two launchers, a worker
        assert bench.poll() is None and time.monotonic() < deadline_s, (tmp_path / "out").read_text()
        time.sleep(0.02)
    bench.send_signal(number)
    assert bench.wait(60) == 130
    left = [one for one in tree if (now := read_stat(one.pid)) and now.started_ticks == one.started_ticks]
    assert not left
