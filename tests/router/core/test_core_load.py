"""What routing may believe of a worker: its last status, corrected by what the router did since."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from pdserve.ids import SequenceKey
from pdserve.v1 import worker_pb2
from router.core.config import SessionConfig
from router.core.fleet import Worker
from router.core.messages import BlockCounts, StatusReport, WorkerIdentity
from router.core.session import WorkerSession
from router.core.wire import event_from_proto
from scheduling.latency import LatencyCoefficients
from scheduling.ledger import Holding
from scheduling.routing import Role


def worker() -> Worker:
    identity = WorkerIdentity("w", b"b" * 16, Role.DECODE, "cpu", 1, "x:1", b"l" * 32, 100, 16, 64, 8, 512, 999, 9)
    return Worker(identity, WorkerSession("x:1", "s", b"r" * 16, SessionConfig()), now_s=0.0)


def status(**changes: Any) -> StatusReport:
    values: dict[str, Any] = {
        "blocks": BlockCounts(free=60, used=30, cached=10), "queued_sequences": 0, "running_sequences": 0,
        "uncomputed_tokens": 0, "promised_blocks": 7, "latency": LatencyCoefficients(base_s=0.5), "samples": (),
        "histograms": (),
    }  # fmt: skip
    return StatusReport(**values | changes)


def hold(worker: Worker, name: str, sent_s: float, tokens: int, blocks: int) -> SequenceKey:
    key = SequenceKey(name)
    worker.hold(key, Holding(sent_s, tokens, blocks))
    return key


def test_before_a_status_the_ledger_is_all_there_is() -> None:
    """Everything sent and not ended, against the whole pool."""
    one = worker()
    hold(one, "a", 0.0, 40, 3)
    hold(one, "b", 0.0, 0, 5)
    load = one.load()
    assert (load.uncomputed_tokens, load.free_blocks, load.num_sequences, load.promised_blocks) == (40, 92, 2, 0)
    assert not load.latency.coefficients.known


def test_a_status_knows_progress_and_the_ledger_knows_news() -> None:
    """Half of an old prompt is computed; a new one was sent after the status; cached blocks are room."""
    one = worker()
    old = hold(one, "old", 0.0, 400, 25)
    one.settle(old, 0.1)
    one.note_status(status(uncomputed_tokens=200), 1.0)
    hold(one, "new", 1.5, 100, 7)
    load = one.load()
    assert load.uncomputed_tokens == 300
    assert load.free_blocks == 60 + 10 - 7
    assert load.promised_blocks == 7 and load.latency.coefficients.base_s == 0.5


def test_what_ended_since_the_status_is_not_waited_for() -> None:
    """Short prompts: all that the status saw queued is done long before the next one."""
    one = worker()
    for n in range(10):
        hold(one, f"r{n}", 0.0, 50, 4)
    one.note_status(status(uncomputed_tokens=500), 1.0)
    for n in range(9):
        one.settle(SequenceKey(f"r{n}"), 1.2, computed=True)
    assert one.load().uncomputed_tokens == 50
    one.release(SequenceKey("r9"))
    assert one.load().uncomputed_tokens == 0


def test_just_before_a_status_counts_as_unknown_to_it() -> None:
    """It was on its way while the status was."""
    one = worker()
    hold(one, "a", 0.98, 100, 7)
    one.note_status(status(), 1.0)
    assert (one.load().uncomputed_tokens, one.load().free_blocks) == (100, 63)


def test_a_room_not_yet_given_is_demand_however_old() -> None:
    """It waits on the worker for room: whoever comes next stands behind it."""
    one = worker()
    key = hold(one, "a", 0.0, 0, 7)
    one.note_status(status(), 10.0)
    assert one.load().free_blocks == 63
    one.settle(key, 11.0)
    assert one.load().free_blocks == 63
    one.note_status(status(), 12.0)
    assert one.load().free_blocks == 70


def test_abort_is_sent_once_and_only_to_the_living() -> None:
    """A second abort, or one to the dead, is nothing."""

    async def main() -> None:
        one = worker()
        key = hold(one, "a", 0.0, 1, 1)
        one.abort(key)
        one.abort(key)
        assert one.session._outgoing.qsize() == 1
        other = hold(one, "b", 0.0, 1, 1)
        one.alive = False
        one.abort(other)
        assert one.session._outgoing.qsize() == 1 and not one.holding

    asyncio.run(main())


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1e-6])
def test_step_times_that_cannot_be_are_not_known(wrong: float) -> None:
    """Else every prediction with them would be as wrong, and no JSON could have them."""
    for given, known in ((wrong, False), (1e-6, True)):
        latency = worker_pb2.LatencyCoefficients(base_s=0.01, per_context_token_s=given)
        report = event_from_proto(worker_pb2.WorkerMessage(status=worker_pb2.WorkerStatus(latency=latency)))
        assert isinstance(report, StatusReport) and report.latency.known is known
