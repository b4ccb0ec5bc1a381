"""Steps of workers that share a machine."""

from __future__ import annotations

import pytest

from placement.simulator.cluster import Slowdown
from placement.simulator.events import EventQueue
from placement.simulator.machine import Machine

ONE_CORE_AND_A_HALF = Slowdown(1.5, 0.0, 0.0, 0.0, 0.0)
EVERYONE = Slowdown(9.0, 1.0, 1.0, 1.0, 1.0)  # each other that computes costs one time the step
BY_KIND = Slowdown(9.0, 0.5, 1.0, 3.0, 0.25)


def times(slowdown: Slowdown, jobs: list[tuple[float, float, bool]]) -> list[tuple[float, float]]:
    """(began, seconds alone, has prompts) of each job -> (ended, how long it took)."""
    events = EventQueue()
    machine = Machine(slowdown, events)
    found: list[tuple[float, float]] = [(-1.0, -1.0)] * len(jobs)

    def begin(index: int, seconds: float, prompts: bool) -> None:
        def done(took_s: float) -> None:
            assert found[index] == (-1.0, -1.0), "ended twice"
            found[index] = (events.now(), took_s)

        machine.begin(seconds, prompts, done)

    for index, (began_s, seconds, prompts) in enumerate(jobs):
        events.at(began_s, begin, index, seconds, prompts)
    assert events.run()
    return found


def test_alone_a_step_takes_its_time() -> None:
    assert times(EVERYONE, [(0.0, 3.0, False), (3.0, 1.0, True)]) == [(3.0, 3.0), (4.0, 1.0)]


def test_together_they_are_slower_for_as_long_as_they_are_together() -> None:
    # 1 s alone, then 2 s for 1 s of work each, of which the second has no more; then 2 s alone.
    assert times(EVERYONE, [(0.0, 4.0, False), (1.0, 1.0, False)]) == [(5.0, 5.0), (3.0, 2.0)]


def test_each_kind_slows_the_other_in_its_own_way() -> None:
    assert times(BY_KIND, [(0.0, 2.0, True)] * 2) == [(3.0, 3.0)] * 2
    assert times(BY_KIND, [(0.0, 2.0, False)] * 2) == [(2.5, 2.5)] * 2
    # The decode does 1 s of its work in 4 s, by then the prompt has done 2 of its 3, the last alone.
    assert times(BY_KIND, [(0.0, 3.0, True), (0.0, 1.0, False)]) == [(5.0, 5.0), (4.0, 4.0)]


def test_more_than_there_are_cores_for_take_turns() -> None:
    assert times(ONE_CORE_AND_A_HALF, [(0.0, 2.0, True), (0.0, 2.0, False), (0.0, 2.0, False)]) == [(4.0, 4.0)] * 3


@pytest.mark.parametrize(
    ("values", "told"), [((0.0, 0, 0, 0, 0), "at_once is 0.0"), ((1.0, 0, 0, -0.5, 0), "decodes_by_prompts is -0.5")]
)
def test_a_slowdown_that_cannot_be_is_refused(values: tuple[float, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Slowdown(*values)


def test_a_rested_prompt_is_longer_only_beside_another() -> None:
    cold = Slowdown(9.0, 0.0, 0.0, 0.0, 0.0, rested_prompts_s=0.5)
    events = EventQueue()
    machine = Machine(cold, events)
    found: list[tuple[str, float]] = []

    def begin(name: str, prompts: bool, rested: bool) -> None:
        machine.begin(1.0, prompts, lambda took_s: found.append((name, took_s)), rested=rested)

    for at_s, name, prompts, rested in (
        (0.0, "rested, alone", True, True), (0.2, "rested, beside", True, True), (0.4, "busy", True, False),
        (0.6, "decode", False, True),
    ):  # fmt: skip
        events.at(at_s, begin, name, prompts, rested)
    assert events.run()
    assert dict(found) == pytest.approx({"rested, alone": 1.0, "rested, beside": 1.5, "busy": 1.0, "decode": 1.0})


def test_one_that_is_dropped_slows_nobody_and_is_not_told() -> None:
    events = EventQueue()
    machine = Machine(EVERYONE, events)
    ended: list[float] = []
    machine.begin(4.0, False, lambda took_s: ended.append(events.now()))
    job = machine.begin(4.0, False, lambda took_s: ended.append(-1.0))
    events.at(2.0, machine.drop, job)
    events.at(9.0, machine.drop, job)
    assert events.run()
    assert ended == [pytest.approx(5.0)]
