"""The workers second by second: load, step times, and who came, went or changed its role."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from router.core.messages import BlockCounts
from router.dashboard.entries import rounded, shortened
from router.dashboard.source import WorkerState, histogram_of

MAX_EVENTS = 40
_STEP_WINDOW = 10  # looks that a mean step time covers; there is one a second
_STATES = ("used", "cached", "leased", "quarantined", "free")


@dataclass(frozen=True, slots=True)
class _Steps:
    """Totals since a worker's start."""

    count: int = 0
    seconds: float = 0.0
    sequences: float = 0.0


@dataclass(slots=True)
class _Followed:
    """One worker between looks."""

    role: str
    up: bool
    since_s: float  # when it last came or went
    steps: deque[_Steps] = field(default_factory=lambda: deque(maxlen=_STEP_WINDOW + 1))


class Pools:
    """Looks at the workers once a second; forgets those that the router forgot."""

    def __init__(self) -> None:
        self._followed: dict[str, _Followed] = {}
        self._events: deque[dict[str, Any]] = deque(maxlen=MAX_EVENTS)
        self._looked = False

    def look(self, workers: list[WorkerState], now_s: float) -> None:
        """Note what changed since the last look."""
        for worker in workers:
            known = self._followed.get(worker.id)
            if known is None:
                known = self._followed[worker.id] = _Followed(worker.role, worker.up, now_s)
                if self._looked:
                    self._note("joined", worker)
            elif worker.role != known.role:
                self._note("role", worker, was=known.role)
                known.role = worker.role
            if worker.up != known.up:
                self._note("up" if worker.up else "down", worker)
                known.up, known.since_s = worker.up, now_s
            steps = _steps(worker)
            if known.steps and steps.count < known.steps[-1].count:
                known.steps.clear()  # another boot counts from 0 again
            known.steps.append(steps)
        ids = {worker.id for worker in workers}
        self._followed = {name: one for name, one in self._followed.items() if name in ids}
        self._looked = True

    def rows(self, workers: list[WorkerState], now_s: float) -> list[dict[str, Any]]:
        """One row a worker, by id."""
        return [self._row(worker, now_s) for worker in workers]

    def events(self) -> list[dict[str, Any]]:
        """Newest first."""
        return list(self._events)[::-1]

    def _row(self, worker: WorkerState, now_s: float) -> dict[str, Any]:
        known, status = self._followed.get(worker.id), worker.status
        row: dict[str, Any] = {
            "id": shortened(worker.id),
            "role": worker.role,
            "device": worker.device,
            "up": worker.up,
            "since_s": None if known is None else round(now_s - known.since_s),
            "silent_s": None if worker.heard_s is None else round(now_s - worker.heard_s, 1),
        }
        if status is None:
            return row
        step_s, batch = (None, None) if known is None else _means(known.steps)
        return row | {
            "running": status.running_sequences,
            "waiting": status.queued_sequences,
            "max_running": worker.max_num_seqs,
            "uncomputed_tokens": status.uncomputed_tokens,
            "blocks": _blocks(status.blocks),
            "leaked_blocks": status.blocks.leaked,
            "kv_bytes": worker.block_bytes * sum(_blocks(status.blocks)),
            "step_s": rounded(step_s, 3),
            "batch": rounded(batch, 3),
        }

    def _note(self, kind: str, worker: WorkerState, was: str | None = None) -> None:
        self._events.append(
            {
                "kind": kind,
                "worker": shortened(worker.id),
                "role": worker.role,
                "was": was,
                "unix_s": round(time.time()),
            }
        )


def _blocks(blocks: BlockCounts) -> list[int]:
    """In the order of `_STATES`."""
    return [getattr(blocks, state) for state in _STATES]


def _steps(worker: WorkerState) -> _Steps:
    seconds, sizes = (histogram_of(worker.status, name) for name in ("step_seconds", "batch_size"))
    if seconds is None:
        return _Steps()
    return _Steps(sum(seconds.counts), seconds.sum, sizes.sum if sizes is not None else 0.0)


def _means(steps: deque[_Steps]) -> tuple[float | None, float | None]:
    """Seconds and sequences of a step, over the looks that are remembered; None when there was no step."""
    if not steps or steps[-1].count == steps[0].count:
        return None, None
    number = steps[-1].count - steps[0].count
    return (steps[-1].seconds - steps[0].seconds) / number, (steps[-1].sequences - steps[0].sequences) / number
