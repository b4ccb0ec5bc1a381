"""What steps and transfers add to a worker's books."""

from __future__ import annotations

from engine.core import StepStats
from kv_transfer.notices import Committed
from pdserve.errors import IncompatiblePeer, LeaseExpired, PeerLost, TransferCorrupt
from worker.telemetry import BATCH_SIZE, STEP_SECONDS, Telemetry

_FAILURES = (PeerLost, TransferCorrupt, LeaseExpired, IncompatiblePeer)  # those that there usually are


class StepBooks:
    """The series that every step of the engine is counted in."""

    def __init__(self, telemetry: Telemetry, role: str) -> None:
        self._seconds = telemetry.histogram("step_seconds", STEP_SECONDS, role=role)
        self._sequences = telemetry.histogram("batch_size", BATCH_SIZE, role=role)

    def count(self, stats: StepStats) -> None:
        """One step."""
        self._seconds.observe(stats.seconds)
        self._sequences.observe(stats.num_sequences)


def count_no_failures(telemetry: Telemetry) -> None:
    """The series of failed handoffs from the start: a rate sees only what grows from something."""
    for reason in _FAILURES:
        telemetry.add("kv_transfer_failures_total", 0.0, reason=reason.__name__)


def count_transfer(telemetry: Telemetry, worker_id: str, notice: Committed) -> None:
    """One handoff that was committed here; its duration is the router's to count, from the event."""
    telemetry.add("kv_transfer_bytes_total", notice.bytes_moved, transport=notice.transport)
    if notice.busy_s > 0.0 and notice.bytes_moved:
        link = {"src": notice.source_worker_id, "dst": worker_id}
        telemetry.set("link_bandwidth_bytes_per_second", notice.bytes_moved / notice.busy_s, **link)
