"""The race for the most, and where it looks next, on placements whose goodput is known by construction."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from placement.hardware.catalogue import gpu_type
from placement.search.bounds import Bounds
from placement.search.bracket import Attainment, Bracket, Verdict
from placement.search.candidate import Candidate, Pool
from placement.search.goodput import Effort, Goodput
from placement.search.race import Races, Runner

H100 = gpu_type("h100")
TARGET, EFFORT = 0.9, Effort(min_seconds=0.0)


def seen(rate: float, goodput: float, half_width: float = 0.02, steep: float = 1.0) -> Attainment:
    """A share that falls in a line through the target."""
    share = float(np.clip(TARGET + steep * (1.0 - rate / goodput), 0.0, 1.0))
    verdict = Verdict.GOOD if share >= TARGET else Verdict.BAD
    return Attainment(rate, share, half_width, 600, verdict)


def narrowed(goodput: float, steep: float, hints: tuple[Attainment, ...] = ()) -> Bracket:
    bracket = Bracket(100.0, TARGET, 0.02, hints)
    while not bracket.closed and len(bracket.probes) < 20:
        bracket.enter(seen(bracket.next_rate(), goodput, steep=steep))
    return bracket


@pytest.mark.parametrize("steep", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("goodput", [0.3, 7.0, 62.0, 99.0])
def test_a_bracket_closes_around_the_goodput(goodput: float, steep: float) -> None:
    bracket = narrowed(goodput, steep)
    assert bracket.closed and bracket.low_rate <= 1.0001 * goodput < 1.0002 * bracket.high_rate
    assert len(bracket.probes) <= 14


@pytest.mark.parametrize("wrong", [0.7, 0.95, 1.0, 1.05, 1.4])
def test_hints_save_probes_and_may_be_wrong(wrong: float) -> None:
    for goodput in (7.0, 62.0):
        low, high = 0.94 * wrong * goodput, 1.06 * wrong * goodput
        hints = (seen(low, wrong * goodput), seen(high, wrong * goodput))
        bracket = narrowed(goodput, 1.0, hints)
        assert bracket.closed and bracket.low_rate <= 1.0001 * goodput < 1.0002 * bracket.high_rate
        assert len(bracket.probes) <= (4 if abs(wrong - 1.0) < 0.1 else 10), wrong
        assert bracket.low_rate == 0.0 or bracket.low_rate in [one.rate for one in bracket.probes], "not of a hint"


def test_a_probe_near_the_target_is_expected_to_take_more_requests() -> None:
    bracket = Bracket(100.0, TARGET, 0.02, (seen(55.0, 60.0), seen(65.0, 60.0)))
    far, near = bracket.requests_for(50.0), bracket.requests_for(59.0)
    assert far <= 600 < near < bracket.requests_for(60.0) == 4 * 600, "four times as many as any before, at most"


def carried_out(goodputs: list[float], short: Callable[[int, float], float]) -> tuple[dict[int, Runner], list[int]]:
    """Races of placements of 1, 2, ... workers whose bound is twice their goodput; `short`: what short runs suggest."""
    races, sent = Races(TARGET, EFFORT), []
    order = sorted(range(len(goodputs)), key=lambda one: -goodputs[one])
    for one in order:
        races.add(Candidate(None, Pool(H100, one + 1), 512), Bounds({"bound": 2 * goodputs[one]}), 1.0)
    for runner in races.heats():
        assert runner is not None, "nothing is under way"
        heat, one = runner.heat, runner.candidate.decode.workers - 1
        sent.append(one)
        if heat.rate is not None:
            found = Goodput(0.0, 0.0, 0.0, (seen(heat.rate, short(one, goodputs[one])),))
        elif goodputs[one] < heat.floor:
            found = Goodput(0.0, 0.0, heat.floor, (seen(heat.floor, goodputs[one], 0.001),))
        else:
            found = Goodput(goodputs[one], goodputs[one], goodputs[one], ())
        races.enter(runner.candidate, found, "")
    return {one.candidate.decode.workers - 1: one for one in races}, sent


def test_the_best_is_found_and_others_only_until_they_are_out() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        goodputs = [float(one) for one in rng.uniform(10.0, 100.0, 30)]
        runners, sent = carried_out(goodputs, lambda one, goodput: goodput)
        best = int(np.argmax(goodputs))
        assert runners[best].found is not None and runners[best].rate == goodputs[best]
        for one, runner in runners.items():
            near = goodputs[one] > 0.9 * goodputs[best]
            assert near or runner.found is None, "its goodput need not be known"
            assert runner.goodput.rate <= max(goodputs[best], goodputs[one])
            assert goodputs[one] <= runner.most
        assert len(sent) < 4 * len(goodputs)


def test_what_a_short_run_flatters_puts_nobody_out_for_good() -> None:
    """The worse of two looks 30 % better in short runs; the better one is looked at again."""
    goodputs = [50.0, 45.0]
    runners, sent = carried_out(goodputs, lambda one, goodput: goodput * (1.0 if one == 0 else 1.3))
    assert runners[0].found is not None and runners[0].found.rate == 50.0
    assert runners[0].rate > runners[1].rate
    assert sent.index(1) < len(sent)


def test_the_best_of_the_other_kind_is_found_where_it_is_near() -> None:
    for other, known in ((95.0, True), (50.0, False)):
        races = Races(TARGET, EFFORT)
        split = Candidate(Pool(H100, 1), Pool(H100, 1), 512)
        races.add(Candidate(None, Pool(H100, 2), 512), Bounds({"bound": 200.0}), 1.0)
        races.add(split, Bounds({"bound": 200.0}), 1.0)
        for runner in races.heats():
            assert runner is not None
            goodput = other if runner.candidate == split else 100.0
            rate = runner.heat.rate
            probes = () if rate is None else (seen(rate, goodput),)
            races.enter(runner.candidate, Goodput(goodput, goodput, goodput, probes), "")
        found = {runner.candidate == split: runner.found is not None for runner in races}
        assert found == {True: known, False: True}
