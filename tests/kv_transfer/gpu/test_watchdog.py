"""Every wait for NCCL ends: by the mark, by the deadline, or because somebody says that the peer is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from kv_transfer.transports.nccl_watchdog import LEFT_BEHIND, Watchdog
from pdserve.errors import PeerLost


class FakeMark:
    def __init__(self, error: Exception | None = None) -> None:
        self.passed = threading.Event()
        self.entered = threading.Event()
        self._error = error

    def wait(self) -> None:
        self.entered.set()
        if self._error is not None:
            raise self._error
        assert self.passed.wait(30)


class FakeCommunicator:
    """`releases`: the marks that an abort lets pass."""

    def __init__(self, *releases: FakeMark) -> None:
        self.releases = releases
        self.aborts = 0

    def send(self, payload: torch.Tensor) -> FakeMark:
        raise AssertionError("a watchdog only aborts")

    receive = send

    def abort(self) -> None:
        self.aborts += 1
        for mark in self.releases:
            mark.passed.set()


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = threading.active_count()
    yield
    LEFT_BEHIND.clear()
    deadline = time.monotonic() + 5.0
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_mark_that_is_passed_ends_the_wait() -> None:
    """In order, one after the other, and nothing is aborted until the close."""
    communicator = FakeCommunicator()
    watchdog = Watchdog(communicator, 10.0)
    for _ in range(3):
        mark = FakeMark()
        threading.Timer(0.01, mark.passed.set).start()
        watchdog.wait(mark)
    assert communicator.aborts == 0
    watchdog.close()
    assert communicator.aborts == 1


def test_a_wait_beyond_the_deadline_aborts() -> None:
    """Once, and every later wait is refused, passed or not: the bytes may be anything."""
    mark = FakeMark()
    communicator = FakeCommunicator(mark)
    watchdog = Watchdog(communicator, 0.05)
    with pytest.raises(PeerLost, match=r"0\.05 s"):
        watchdog.wait(mark)
    with pytest.raises(PeerLost, match=r"0\.05 s"):
        watchdog.wait(mark)
    watchdog.close()
    assert communicator.aborts == 1 and not LEFT_BEHIND


def test_a_lost_peer_ends_the_wait_at_once() -> None:
    """Not after the timeout: the control link's thread fires."""
    mark = FakeMark()
    communicator = FakeCommunicator(mark)
    watchdog = Watchdog(communicator, 60.0)

    def fire() -> None:
        assert mark.entered.wait(10)
        watchdog.fire("the peer is gone")

    threading.Thread(target=fire).start()
    with pytest.raises(PeerLost, match="gone"):
        watchdog.wait(mark)
    watchdog.close()
    assert communicator.aborts == 1


def test_an_error_of_the_device_ends_the_pair() -> None:
    """What NCCL or CUDA raise becomes PeerLost, and the communicator is aborted."""
    communicator = FakeCommunicator()
    watchdog = Watchdog(communicator, 10.0)
    with pytest.raises(PeerLost, match="unhandled system error"):
        watchdog.wait(FakeMark(RuntimeError("unhandled system error")))
    watchdog.close()
    assert communicator.aborts == 1


def test_an_abort_that_releases_nothing_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """After the grace the caller goes on; the mark, and with it the memory, is kept for good, and the log says so."""
    mark = FakeMark()
    watchdog = Watchdog(FakeCommunicator(), 0.02, grace_s=0.05)
    with pytest.raises(PeerLost):
        watchdog.wait(mark)
    assert mark in LEFT_BEHIND and len(LEFT_BEHIND) == 1
    assert "given up" in caplog.text
    watchdog.close()
    mark.passed.set()


def test_an_abort_that_hangs_holds_nobody() -> None:
    """abort() itself never returns: fire() does, close() does after the grace."""
    released = threading.Event()

    class Hanging(FakeCommunicator):
        def abort(self) -> None:
            assert released.wait(30)

    watchdog = Watchdog(Hanging(), 10.0, grace_s=0.05)
    began = time.monotonic()
    watchdog.fire("the pair ended")
    watchdog.close()
    assert time.monotonic() - began < 5.0
    released.set()
