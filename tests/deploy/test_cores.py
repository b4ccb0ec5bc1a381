"""Threads and cores of each worker, from 1 core to 128 processors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cores import Machine, Share, divide, quota_of, shown, this_machine
from deploy.local.environment import child_environment
from pdserve.config import WorkerConfig, WorkerStart
from scheduling.latency import LatencyCoefficients, LatencyModel, save_profile


def plain(num_cores: int, quota: float | None = None) -> Machine:
    return Machine(tuple((n,) for n in range(num_cores)), quota)


def smt(num_cores: int) -> Machine:
    return Machine(tuple((n, n + num_cores) for n in range(num_cores)))


TABLE = [
    # machine, workers, --threads, --pin-cores -> threads of each, processors of the first and the last
    (plain(1), 1, None, "auto", 1, "", ""),
    (plain(1), 2, None, "auto", 1, "", ""),
    (plain(2), 1, None, "auto", 2, "", ""),
    (plain(2), 2, None, "auto", 1, "", ""),
    (plain(2), 2, None, "on", 1, "0", "1"),
    (plain(2), 1, None, "on", 2, "0-1", "0-1"),
    (plain(2), 2, 4, "off", 4, "", ""),
    (plain(2), 2, 4, "auto", 4, "", ""),
    (plain(2), 2, 4, "on", 1, "0", "1"),
    (plain(2), 16, None, "on", 1, "", ""),
    (plain(4), 1, None, "auto", 4, "0-3", "0-3"),
    (plain(4), 2, None, "auto", 2, "", ""),
    (plain(8), 2, None, "auto", 3, "", ""),
    (plain(16), 2, None, "auto", 7, "1-7", "8-14"),
    (plain(64), 2, None, "auto", 31, "2-32", "33-63"),
    (plain(64), 2, 8, "auto", 8, "2-32", "33-63"),
    (plain(64), 2, 40, "auto", 31, "2-32", "33-63"),
    (plain(64), 2, None, "off", 31, "", ""),
    (plain(64), 64, None, "auto", 1, "", ""),
    (plain(64), 63, None, "on", 1, "1", "63"),
    (plain(64), 1, None, "auto", 62, "2-63", "2-63"),
    (smt(64), 2, None, "auto", 31, "2-32,66-96", "33-63,97-127"),
    (plain(64, 4.0), 2, None, "auto", 2, "", ""),
    (plain(64, 4.0), 2, None, "on", 2, "", ""),
    (plain(64, 0.5), 1, None, "auto", 1, "", ""),
    (plain(2, 2.0), 2, None, "on", 1, "0", "1"),
]


@pytest.mark.parametrize(("machine", "workers", "asked", "pin", "threads", "first", "last"), TABLE)
def test_shares(machine: Machine, workers: int, asked: int, pin: str, threads: int, first: str, last: str) -> None:
    """Equal, within the machine, disjoint where pinned, and never more threads than cores of one's own."""
    shares = divide(machine, workers, asked, pin)
    assert [share.threads for share in shares] == [threads] * workers
    assert (shown(shares[0].processors), shown(shares[-1].processors)) == (first, last)
    taken = [processor for share in shares for processor in share.processors]
    assert len(set(taken)) == len(taken)
    assert set(taken) <= {processor for core in machine.cores for processor in core}
    if asked is None and workers <= len(machine.cores):
        assert threads * workers <= max(workers, machine.quota or len(machine.cores))


def test_quota() -> None:
    """cgroup v2's and v1's words; no limit is none."""
    assert quota_of("200000 100000\n") == 2.0
    assert quota_of("50000 100000") == 0.5
    assert quota_of("max 100000") is None and quota_of("-1 100000") is None and quota_of("") is None


def test_this_machine_is_where_this_process_may_run() -> None:
    """Every processor once."""
    machine = this_machine()
    assert sorted(p for core in machine.cores for p in core) == sorted(os.sched_getaffinity(0))
    assert divide(machine, 1, pin="off")[0] != Share(0)


def test_a_childs_openmp_sleeps_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set in the environment stays."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert child_environment()["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert child_environment()["OMP_WAIT_POLICY"] == "active"


def test_a_worker_keeps_to_its_processors(tmp_path: Path) -> None:
    """The whole process, from before its engine is built."""
    profile = tmp_path / "profile.json"
    save_profile(profile, LatencyModel(LatencyCoefficients()))
    one = min(os.sched_getaffinity(0))
    config = WorkerConfig(mock=str(profile), kv_bytes=1 << 24, max_num_seqs=4, max_num_batched_tokens=64)
    start = WorkerStart("decode-0", "decode", "", "cpu", "s", "127.0.0.1:0", config, (one,))
    command = [sys.executable, "-P", "-m", "decode_worker"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": child_environment()}
    with subprocess.Popen(command, **pipes) as worker:  # type: ignore[call-overload]
        worker.stdin.write(start.to_json().encode() + b"\n")
        worker.stdin.flush()
        assert json.loads(worker.stdout.readline())["ready"]
        tasks = [int(task.name) for task in Path(f"/proc/{worker.pid}/task").iterdir()]
        assert len(tasks) > 1 and all(os.sched_getaffinity(task) == {one} for task in tasks)
        worker.stdin.close()
        assert worker.wait(30) == 0
