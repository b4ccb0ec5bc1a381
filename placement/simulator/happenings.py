"""Deaths, returns and role changes, carried out on a cluster that runs.

A worker of several lanes (`decode-0.0`, `decode-0.1`) dies, comes back and changes its role as one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from placement.simulator.cluster import ClusterEvent, ClusterSpec, RoleChange, WorkerDown, WorkerUp
from placement.simulator.events import EventQueue
from placement.simulator.results import Change, Happened
from placement.simulator.router import SimRouter

_DRAIN_LOOK_S = 0.05  # a draining worker is looked at this often


def lanes_of(cluster: ClusterSpec, name: str) -> tuple[str, ...]:
    """What a worker consists of, by the ids of the cluster; nothing when there is none of that name."""
    ids = [worker.worker_id for worker in cluster.workers]
    return (name,) if name in ids else tuple(one for one in ids if one.rpartition(".")[0] == name)


class Happenings:
    """What is to happen to a cluster, and `log`: what has happened, in order."""

    def __init__(
        self, cluster: ClusterSpec, router: SimRouter, events: EventQueue, happenings: Iterable[ClusterEvent]
    ) -> None:
        """Errors: ValueError for a worker that is not part of the cluster."""
        self.log: list[Happened] = []
        self._router = router
        self._events = events
        self._specs = {worker.worker_id: worker for worker in cluster.workers}  # as they come up next
        self._changing: dict[str, RoleChange] = {}  # under way; by worker, the last that was asked for
        for happening in happenings:
            lanes = lanes_of(cluster, happening.worker_id)
            if not lanes:
                raise ValueError(f"worker {happening.worker_id} is not part of the cluster")
            events.at(happening.at_s, self._happen, happening, lanes)

    def _happen(self, happening: ClusterEvent, lanes: tuple[str, ...]) -> None:
        name = happening.worker_id
        up = any(self._is_up(lane) for lane in lanes)
        match happening:
            case WorkerDown():
                if up or name in self._changing:
                    self._changing.pop(name, None)  # in the middle of a change: it comes up in its new role
                    self._stop(lanes)
                    self._note(lanes, name, Change.DIED)
            case WorkerUp():
                if not up and name not in self._changing:
                    self._start(lanes)
                    self._note(lanes, name, Change.STARTED)
            case RoleChange():
                if up or name in self._changing:
                    self._changing[name] = happening
                    for lane in filter(self._is_up, lanes):
                        self._router.fleet.drain(lane)
                    for lane in lanes:
                        self._specs[lane] = replace(self._specs[lane], role=happening.role)
                    self._note(lanes, name, Change.DRAINED)
                    self._change_role(happening, lanes)

    def _change_role(self, change: RoleChange, lanes: tuple[str, ...]) -> None:
        """When nothing is left on it, it stops, to start again."""
        if self._changing.get(change.worker_id) is not change:
            return
        if not all(self._is_idle(lane) for lane in lanes if self._is_up(lane)):
            self._events.after(_DRAIN_LOOK_S, self._change_role, change, lanes)
            return
        self._stop(lanes)
        self._events.after(change.takes_s, self._come_back, change, lanes)

    def _come_back(self, change: RoleChange, lanes: tuple[str, ...]) -> None:
        if self._changing.get(change.worker_id) is change:
            del self._changing[change.worker_id]
            self._start(lanes)
            self._note(lanes, change.worker_id, Change.CHANGED)

    def _is_up(self, lane: str) -> bool:
        worker = self._router.fleet.workers.get(lane)
        return worker is not None and worker.alive

    def _is_idle(self, lane: str) -> bool:
        fleet = self._router.fleet
        return fleet.is_idle(lane) and not fleet.workers[lane].scheduler.live_keys()

    def _start(self, lanes: tuple[str, ...]) -> None:
        for lane in lanes:
            self._router.add_worker(self._specs[lane])

    def _stop(self, lanes: tuple[str, ...]) -> None:
        for lane in filter(self._is_up, lanes):
            self._router.remove_worker(lane)

    def _note(self, lanes: tuple[str, ...], name: str, change: Change) -> None:
        self.log.append(Happened(self._events.now(), name, change, self._specs[lanes[0]].role))
