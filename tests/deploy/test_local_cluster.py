"""Children that load, fail, die and refuse to die: the launcher tells why, and leaves none behind."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.local.cluster import LocalCluster, RunningWorker
from pdserve.config import WorkerStart
from pdserve.exit import ExitCode, StartError

Commands = Callable[..., Callable[[WorkerStart], list[str]]]


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids: list[int], timeout_s: float) -> list[int]:
    """Those that still run after the timeout; returns as soon as there are none."""
    deadline = time.monotonic() + timeout_s
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.01)  # strangers' processes: there is no event to wait for
    return left


async def started(cluster: LocalCluster, timeout_s: float = 20.0) -> list[RunningWorker]:
    try:
        return await cluster.start(timeout_s)
    finally:
        await cluster.stop(5.0)


def test_workers_start_and_stop(
    fake_worker: Commands, worker_starts: list[WorkerStart], capfd: pytest.CaptureFixture[str]
) -> None:
    """Each is warm under its own id; SIGTERM ends it; its log lines come with its name."""
    running = asyncio.run(started(LocalCluster(worker_starts, fake_worker())))
    assert [one.ready.worker_id for one in running] == ["prefill-0", "decode-0"]
    assert [one.ready.address for one in running] == ["127.0.0.1:1"] * 2
    assert not any(alive(one.ready.pid) for one in running)
    errors = capfd.readouterr().err
    assert "[prefill-0] prefill-0 é log line\n" in errors
    assert "[decode-0] drained\n" in errors


@pytest.mark.parametrize(
    ("behaviour", "message", "exit_code"),
    [
        ("refuses", "decode-0: weights are broken", ExitCode.MODEL),
        ("dies", "decode-0 ended before it was ready: exit code 7", ExitCode.FAILED),
        ("silent-exit-3", "decode-0 ended before it was ready: exit code 3", ExitCode.ENVIRONMENT),
        ("garbage", "decode-0 wrote b'hello\\n' where its ready line belongs", ExitCode.FAILED),
        ("stranger", "decode-0 calls itself 'somebody-else'", ExitCode.FAILED),
    ],
)
def test_a_worker_that_cannot_start_ends_the_start(
    fake_worker: Commands, worker_starts: list[WorkerStart], behaviour: str, message: str, exit_code: ExitCode
) -> None:
    """The launcher fails with the worker's own words and exit code."""
    with pytest.raises(StartError) as caught:
        asyncio.run(started(LocalCluster(worker_starts, fake_worker(decode_0=behaviour))))
    assert caught.value.message == message
    assert caught.value.exit_code is exit_code


def test_a_worker_that_hangs_runs_into_the_timeout(fake_worker: Commands, worker_starts: list[WorkerStart]) -> None:
    """Who is late is named."""
    with pytest.raises(StartError, match=r"^prefill-0 not ready within 1 s"):
        asyncio.run(started(LocalCluster(worker_starts, fake_worker(prefill_0="hangs")), timeout_s=1.0))


def test_a_worker_that_dies_later_is_reported(
    fake_worker: Commands, worker_starts: list[WorkerStart], caplog: pytest.LogCaptureFixture
) -> None:
    """The cluster goes on with the other one; the log says who is gone and how."""

    class Told(logging.Handler):
        """Sets an event at the first record."""

        def __init__(self) -> None:
            super().__init__(logging.ERROR)
            self.event = asyncio.Event()

        def emit(self, record: logging.LogRecord) -> None:
            self.event.set()

    async def run() -> list[int]:
        told = Told()
        logging.getLogger("deploy.local.cluster").addHandler(told)
        cluster = LocalCluster(worker_starts, fake_worker(decode_0="dies-later"))
        running = await cluster.start(20.0)
        watching = asyncio.create_task(cluster.watch())
        await told.event.wait()
        logging.getLogger("deploy.local.cluster").removeHandler(told)
        left = [one.ready.pid for one in running if alive(one.ready.pid)]
        await cluster.stop(5.0)
        await watching
        return left

    with caplog.at_level(logging.ERROR):
        left = asyncio.run(asyncio.wait_for(run(), 20.0))
    assert len(left) == 1
    assert "is gone: exit code 9" in caplog.text
    assert "prefill-0" not in caplog.text, "a worker that was told to stop is no news"


def test_a_worker_that_ignores_sigterm_is_killed(fake_worker: Commands, worker_starts: list[WorkerStart]) -> None:
    """After the grace nothing runs any more."""

    async def run() -> list[RunningWorker]:
        cluster = LocalCluster(worker_starts, fake_worker(prefill_0="stubborn"))
        running = await cluster.start(20.0)
        await cluster.stop(0.3)
        return running

    assert not any(alive(one.ready.pid) for one in asyncio.run(run()))


LAUNCHER = """
import asyncio, sys
from deploy.local.cluster import LocalCluster
from pdserve.config import WorkerConfig, WorkerStart

async def main():
    starts = [WorkerStart(f"{r}-0", r, "", "cpu", "s", "127.0.0.1:0", WorkerConfig()) for r in ("prefill", "decode")]
    cluster = LocalCluster(starts, lambda start: [sys.executable, sys.argv[1], sys.argv[2]])
    print(*[one.ready.pid for one in await cluster.start(20.0)], flush=True)
    await cluster.watch()

asyncio.run(main())
"""


@pytest.mark.e2e
@pytest.mark.parametrize("behaviour", ["good", "stubborn"])
def test_kill_9_of_the_launcher_leaves_no_worker(
    fake_worker: Commands, worker_starts: list[WorkerStart], behaviour: str
) -> None:
    """Not even one that ignores SIGTERM and the end of its input."""
    script = fake_worker()(worker_starts[0])[1]
    command = [sys.executable, "-c", LAUNCHER, script, behaviour]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as launcher:
        assert launcher.stdout is not None
        pids = [int(pid) for pid in launcher.stdout.readline().split()]
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        launcher.kill()
    assert wait_until_gone(pids, 5.0) == []


def test_workers_do_not_hear_the_terminal(fake_worker: Commands, worker_starts: list[WorkerStart]) -> None:
    """Ctrl-C goes to the launcher's process group; each worker has its own."""

    async def run() -> list[int]:
        cluster = LocalCluster(worker_starts, fake_worker())
        try:
            return [os.getpgid(one.ready.pid) - one.ready.pid for one in await cluster.start(20.0)]
        finally:
            await cluster.stop(5.0)

    before = signal.getsignal(signal.SIGINT)  # ignored already when the tests themselves run in the background
    assert asyncio.run(run()) == [0, 0]
    assert signal.getsignal(signal.SIGINT) is before
