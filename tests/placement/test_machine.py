"""Steps of workers that share a machine."""

from __future__ import annotations

import pytest

from placement.simulator.events import EventQueue
from placement.simulator.machine import Machine


def times(slowdown: tuple[float, ...], jobs: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """(began, seconds alone) of each job -> (ended, how long it took)."""
    events = EventQueue()
    machine = Machine(slowdown, events)
    found: list[tuple[float, float]] = [(-1.0, -1.0)] * len(jobs)

    def begin(index: int, seconds: float) -> None:
        def done(took_s: float) -> None:
            assert found[index] == (-1.0, -1.0), "ended twice"
            found[index] = (events.now(), took_s)

        machine.begin(seconds, done)

    for index, (began_s, seconds) in enumerate(jobs):
        events.at(began_s, begin, index, seconds)
    assert events.run()
    return found


def test_alone_a_step_takes_its_time() -> None:
    assert times((1.0, 2.0), [(0.0, 3.0), (3.0, 1.0)]) == [(3.0, 3.0), (4.0, 1.0)]


def test_together_they_are_slower_for_as_long_as_they_are_together() -> None:
    # 1 s alone, then 2 s for 1 s of work each, of which the second has no more; then 2 s alone.
    assert times((1.0, 2.0), [(0.0, 4.0), (1.0, 1.0)]) == [(5.0, 5.0), (3.0, 2.0)]


def test_the_last_factor_stands_for_more_workers() -> None:
    assert times((1.0, 1.5), [(0.0, 2.0)] * 3) == [(3.0, 3.0)] * 3


def test_one_that_is_dropped_slows_nobody_and_is_not_told() -> None:
    events = EventQueue()
    machine = Machine((1.0, 2.0), events)
    ended: list[float] = []
    machine.begin(4.0, lambda took_s: ended.append(events.now()))
    job = machine.begin(4.0, lambda took_s: ended.append(-1.0))
    events.at(2.0, machine.drop, job)
    events.at(9.0, machine.drop, job)
    assert events.run()
    assert ended == [pytest.approx(5.0)]
