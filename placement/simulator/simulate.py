"""Runs a workload through a cluster under a virtual clock."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from pdserve.errors import InvariantViolation
from pdserve.ids import SequenceKey
from placement.simulator.cluster import ClusterEvent, ClusterSpec
from placement.simulator.events import EventQueue
from placement.simulator.happenings import Happenings
from placement.simulator.requests import Outcome, RequestLife, SimRequest
from placement.simulator.results import SimulationResult, collect
from placement.simulator.router import SimRouter


def simulate(
    cluster: ClusterSpec,
    requests: Sequence[SimRequest],
    happenings: Iterable[ClusterEvent] = (),
    *,
    until_s: float = math.inf,
) -> SimulationResult:
    """Serve `requests` (in order of arrival) until all have ended, or until `until_s` of virtual time.

    What is simulated: the router's policy and ledgers, queues, chunked prefill and batching, KV blocks and admission,
    preemption, prefix cache, handoff with credits and shared links, decode, colocated and mixed workers, deaths and
    role changes. What is not: interference between a transfer and a step, the tokens themselves, clients that are slow.

    Errors: ValueError when arrivals are out of order or an event is of an unknown worker; InvariantViolation when a
    promise of the scheduler is broken or a request or block is lost.
    """
    run = _Run(cluster, requests, happenings)
    done = run.events.run(until_s)
    if done:
        run.check()
    counts, links = run.router.fleet.counts, run.router.links
    result = collect(run.lives, counts, run.events.now(), links.moved_bytes, run.events.num_run)
    return replace(result, happened=tuple(run.happened))


class _Run:
    """One simulation under way."""

    def __init__(
        self, cluster: ClusterSpec, requests: Sequence[SimRequest], happenings: Iterable[ClusterEvent]
    ) -> None:
        self.events = EventQueue()
        self.router = SimRouter(cluster, self.events)
        self.lives = [
            RequestLife(index, request, SequenceKey(str(index), index + 1)) for index, request in enumerate(requests)
        ]
        self._cluster = cluster
        self._next = 0
        self.happened = Happenings(cluster, self.router, self.events, happenings).log
        self._admit_next()
        if self.lives:
            self.events.after(cluster.status_s, self._report)

    def check(self) -> None:
        """Nothing is left: every request ended, every block is free, every handoff is over."""
        for life in self.lives:
            if life.outcome is Outcome.UNFINISHED:
                raise InvariantViolation(f"request {life.index} never ended")
        if len(self.router.handoffs):
            raise InvariantViolation(f"{len(self.router.handoffs)} handoffs are left")
        for name, worker in self.router.fleet.workers.items():
            worker.scheduler.check()
            if not self.router.fleet.is_idle(name):
                raise InvariantViolation(f"the router thinks that {name} has something left")
            if worker.scheduler.blocks.num_referenced:
                raise InvariantViolation(f"{worker.spec.worker_id} has blocks left")

    def _admit_next(self) -> None:
        """One arrival is planned at a time: a million requests are not a million events."""
        if self._next == len(self.lives):
            return
        life = self.lives[self._next]
        if life.request.arrival_s < self.events.now():
            raise ValueError(f"request {life.index} arrives at {life.request.arrival_s} s, before the one before it")
        self._next += 1
        self.events.at(life.request.arrival_s, self._arrive, life)

    def _arrive(self, life: RequestLife) -> None:
        front_s, jitter = self._cluster.delays.front_s, self._cluster.jitter
        if jitter is not None:
            front_s = max(0.0, front_s + jitter.front_s(life.index))
        self.events.after(front_s, self.router.submit, life)
        self._admit_next()

    def _report(self) -> None:
        """Statuses, as long as something is to come or under way."""
        self.router.fleet.report_statuses()
        if self._next < len(self.lives) or not self.router.is_quiet:
            self.events.after(self._cluster.status_s, self._report)
