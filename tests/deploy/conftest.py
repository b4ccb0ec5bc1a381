"""A worker that obeys the launcher's contract and computes nothing, and small model directories."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pdserve.config import WorkerConfig, WorkerStart

FAKE_WORKER = """
import json, os, signal, sys, threading

behaviour = sys.argv[1]
signal.signal(signal.SIGINT, signal.SIG_IGN)
start = json.loads(sys.stdin.readline())
name = start["worker_id"]
if behaviour == "refuses":
    print(json.dumps({"ready": False, "error": "weights are\\nbroken", "exit_code": 4}), flush=True)
    sys.exit(4)
if behaviour == "dies":
    sys.exit(7)
if behaviour == "silent-exit-3":
    sys.exit(3)
if behaviour == "garbage":
    print("hello", flush=True)
if behaviour == "stranger":
    name = "somebody-else"
if behaviour == "hangs":
    threading.Event().wait()
if behaviour == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    def leave(*_):
        print("drained", file=sys.stderr, flush=True)
        os._exit(0)
    signal.signal(signal.SIGTERM, leave)
print(name + " \\u00e9 log line", file=sys.stderr, flush=True)
ready = {"ready": True, "address": "127.0.0.1:1", "worker_id": name, "boot_id": "00" * 16, "pid": os.getpid()}
print(json.dumps(ready), flush=True)
if behaviour == "dies-later":
    threading.Event().wait(0.2)
    os._exit(9)
if behaviour == "stubborn":
    threading.Event().wait()  # not even the end of its input moves it
sys.stdin.read()
"""


@pytest.fixture
def fake_worker(tmp_path: Path) -> Callable[..., Callable[[WorkerStart], list[str]]]:
    """Gives a launcher's `command`: a fake worker with a behaviour for each worker id, "good" unless named."""
    script = tmp_path / "fake_worker.py"
    script.write_text(FAKE_WORKER)

    def commands(**behaviours: str) -> Callable[[WorkerStart], list[str]]:
        named = {name.replace("_", "-"): behaviour for name, behaviour in behaviours.items()}
        return lambda start: [sys.executable, str(script), named.get(start.worker_id, "good")]

    return commands


@pytest.fixture
def worker_starts() -> list[WorkerStart]:
    """One prefill and one decode worker."""
    return [
        WorkerStart(f"{role}-0", role, "", "cpu", "secret", "127.0.0.1:0", WorkerConfig())
        for role in ("prefill", "decode")
    ]
