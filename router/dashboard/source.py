"""What the dashboard looks at in the router's core, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from router.core.core import Core
from router.core.fleet import Worker
from router.core.messages import Histogram, StatusReport, WorkerIdentity
from scheduling.routing import RoutingConfig


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One worker that is known, live or not."""

    id: str
    role: str
    device: str
    up: bool
    status: StatusReport | None = None  # its last one; None: it is down or has sent none
    heard_s: float | None = None  # when it last said anything, on the router's clock
    max_num_seqs: int = 0
    block_bytes: int = 0
    identity: WorkerIdentity | None = None  # None: it is down


def histogram_of(status: StatusReport | None, name: str) -> Histogram | None:
    """One of those that a worker reports; None: it has not yet."""
    histograms = () if status is None else status.histograms
    return next((one for one in histograms if one.name == name), None)


@dataclass(frozen=True, slots=True)
class Activity:
    """What runs now, and totals since the start."""

    running: int  # requests
    generated_tokens: int
    gap_bounds: Sequence[float] = ()  # of the histogram of gaps between tokens
    gap_counts: Sequence[int] = ()  # one more, not cumulative


class ClusterSource(Protocol):
    """Who knows the workers and what runs on them."""

    def workers(self) -> list[WorkerState]: ...

    def activity(self) -> Activity: ...

    def running_since_s(self) -> list[float]: ...

    def is_ready(self) -> bool: ...

    def routing(self) -> RoutingConfig: ...


class CoreSource:
    """The core of this process."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def workers(self) -> list[WorkerState]:
        """Every worker known, by id."""
        live = {worker.id: worker for worker in self._core.fleet}
        return [
            _live(live[view.id]) if view.id in live else WorkerState(view.id, view.role, view.device, False)
            for view in self._core.workers()
        ]

    def activity(self) -> Activity:
        bounds, counts = self._core.metrics.gap_counts()
        return Activity(len(self._core.running), self._core.worker_events.generated_tokens, bounds, counts)

    def running_since_s(self) -> list[float]:
        """When each request that runs was received, on the router's clock."""
        return [active.request.received_s for active in self._core.running]

    def is_ready(self) -> bool:
        return self._core.is_ready()

    def routing(self) -> RoutingConfig:
        return self._core.config.routing


def _live(worker: Worker) -> WorkerState:
    known = worker.identity
    return WorkerState(
        worker.id,
        worker.role.value,
        known.device,
        True,
        worker.status,
        worker.heard_s,
        known.max_num_seqs,
        known.block_bytes,
        known,
    )
