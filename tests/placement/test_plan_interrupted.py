"""A search that is ended early says what it knows, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [
    sys.executable, "-m", "deploy.cli", "plan", "--model", "llama-3.1-70b", "--workload", "azure-conv", "--gpus", "96",
    "--slo-ttft", "0.5", "--slo-tpot", "0.05", "--processes", "2",
]  # fmt: skip


def children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def searching(pid: int) -> bool:
    """Whether a process that simulates is there, and not only the one that watches over semaphores."""
    return any(b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes() for one in children(pid))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ended_while_processes_simulate_it_answers_and_leaves_nothing(number: signal.Signals) -> None:
    process = subprocess.Popen(
        ["env", "--default-signal=INT", *COMMAND], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not searching(process.pid) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    left = children(process.pid)
    process.send_signal(number)
    said, complained = process.communicate(timeout=60)
    assert process.returncode in (0, 1), complained
    assert "interrupted, not all were simulated" in said and complained == ""
    until = time.monotonic() + 10
    while any(alive(one) for one in left) and time.monotonic() < until:
        time.sleep(0.01)  # the one that watches over semaphores ends by itself, when all others have
    assert left and not [one for one in left if alive(one)]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
