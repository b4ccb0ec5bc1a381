"""Transfers over ports that they share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from placement.simulator.cluster import LinkSpec
from placement.simulator.events import EventQueue

_DONE_BYTES = 1e-6


@dataclass(slots=True, eq=False)
class _Flow:
    ports: tuple[tuple[str, str], tuple[str, str]]  # (source, "out"), (target, "in")
    left_bytes: float
    done: Callable[[], None]
    rate: float = 0.0


class Links:
    """One flow at a time per pair of workers, in order; a flow gets the smaller of its two ports' equal shares.

    Rates change only when a flow starts or ends: between those instants everything is linear, so nothing is stepped.
    """

    def __init__(self, spec: LinkSpec, events: EventQueue) -> None:
        self._spec = spec
        self._events = events
        self._queues: dict[tuple[str, str], deque[_Flow]] = {}
        self._active: dict[tuple[str, str], _Flow] = {}
        self._sharing: dict[tuple[str, str], int] = {}
        self._known_s = 0.0
        self._round = 0  # a planned end is void when this has moved on
        self.moved_bytes = 0.0
        self.busy_s: dict[tuple[str, str], float] = {}

    def move(self, source: str, target: str, num_bytes: float, done: Callable[[], None]) -> None:
        """Queue one transfer; `done` is called when its last byte has arrived."""
        pair = (source, target)
        flow = _Flow(((source, "out"), (target, "in")), max(num_bytes, _DONE_BYTES), done)
        self._queues.setdefault(pair, deque()).append(flow)
        if len(self._queues[pair]) == 1:
            self._events.after(self._spec.latency_s, self._start, pair)

    def drop(self, worker: str) -> None:
        """A worker is gone: nothing that it was part of arrives any more."""
        self._advance()
        for pair in [pair for pair in self._queues if worker in pair]:
            del self._queues[pair]
            if (flow := self._active.pop(pair, None)) is not None:
                self._leave(flow)
        self._plan()

    def _start(self, pair: tuple[str, str]) -> None:
        queue = self._queues.get(pair)
        if not queue or pair in self._active:
            return  # dropped meanwhile
        self._advance()
        flow = self._active[pair] = queue[0]
        for port in flow.ports:
            self._sharing[port] = self._sharing.get(port, 0) + 1
        self._plan()

    def _advance(self) -> None:
        """Move the bytes of the time that has passed."""
        passed_s = self._events.now() - self._known_s
        self._known_s = self._events.now()
        for pair, flow in self._active.items():
            flow.left_bytes -= flow.rate * passed_s
            self.busy_s[pair] = self.busy_s.get(pair, 0.0) + passed_s
            self.moved_bytes += flow.rate * passed_s

    def _plan(self) -> None:
        """New rates, and the instant of the next end."""
        self._round += 1
        if not self._active:
            return
        for flow in self._active.values():
            flow.rate = self._spec.bytes_per_s / max(self._sharing[port] for port in flow.ports)
        next_s = min(max(flow.left_bytes, 0.0) / flow.rate for flow in self._active.values())
        self._events.after(next_s, self._finish, self._round)

    def _finish(self, planned: int) -> None:
        if planned != self._round:
            return
        self._advance()
        # Whoever has less left than the clock can resolve has ended as well, or it would never end.
        least = min(flow.left_bytes for flow in self._active.values())
        ended = [pair for pair, flow in self._active.items() if flow.left_bytes <= max(_DONE_BYTES, least)]
        flows = [self._active.pop(pair) for pair in ended]
        for pair, flow in zip(ended, flows, strict=True):
            self._leave(flow)
            queue = self._queues[pair]
            queue.popleft()
            if queue:
                self._events.after(self._spec.latency_s, self._start, pair)
        self._plan()
        for flow in flows:
            flow.done()

    def _leave(self, flow: _Flow) -> None:
        for port in flow.ports:
            self._sharing[port] -= 1
