"""Which placement serves most, without finding the goodput of each: a race.

First each is looked at by short runs, the one that may serve most first, until they tell no more of it. Whatever
surely does not serve what another does is out, for as long as the other is seen to serve it: a short run may flatter.
Then the goodput of those that are left is found, the likeliest first.

What is found of a placement depends on the others only in where it is given up: the answer is the same for one process
and for many.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from placement.search.bounds import Bounds
from placement.search.bracket import Attainment, Bracket, Verdict
from placement.search.candidate import Candidate
from placement.search.goodput import COARSE, Effort, Goodput

_MOST_PROBES = 8
_OTHER_KIND = 0.9  # of the best's worth: so good must the best of the other kind be for its goodput to be found
_SLACK = 1.01  # what is known of the best is no more exact


@dataclass(frozen=True, slots=True)
class Heat:
    """What is done of a placement at once."""

    rate: float | None = None  # of a short run; None: its goodput is found
    test: bool = False  # at a rate that another serves
    floor: float = 0.0  # of the rate: what does not reach it is given up
    last: bool = False  # whether its goodput, found before, lasts


class Runner:
    """One placement in the race."""

    def __init__(self, candidate: Candidate, bounds: Bounds, worth: float, target: float, short: bool) -> None:
        self.candidate, self.bounds = candidate, bounds
        self.worth = worth  # of one request per second
        self.most = bounds.rate  # it does not serve as much, or is not worth knowing whether
        self.reason = ""
        self.heat = Heat()  # under way, or the last one
        self.busy = False
        self.found: Goodput | None = None  # its goodput
        self.lasting = False  # as a long run has it
        self._bracket = Bracket(bounds.rate, target, COARSE)  # of short runs
        self._tests: list[Attainment] = []
        self._target = target
        self._short = short  # whether short runs tell anything

    @property
    def rate(self) -> float:
        """Seen to be served, if only in a short run and perhaps by chance."""
        return max((one.rate for one in self._good), default=0.0) if self.found is None else self.found.rate

    @property
    def settled(self) -> bool:
        """Not so where it was given up: it may come back when another does not last."""
        return self.found is not None

    @property
    def goodput(self) -> Goodput:
        """What is known now: of short runs only what is sure."""
        if self.found is not None:
            return self.found
        sure = max((one.rate for one in self._good if one.surely_good(self._target)), default=0.0)
        return Goodput(sure, sure, self.most, self._probes)

    @property
    def coarse(self) -> bool:
        """Whether short runs tell no more."""
        return not self._short or self._bracket.settled or len(self._bracket.probes) >= _MOST_PROBES

    @property
    def hints(self) -> tuple[Attainment, ...]:
        """What the search for its goodput begins with."""
        return tuple(self._bracket.probes)  # not the tests: the answer depends on nobody else

    @property
    def _probes(self) -> tuple[Attainment, ...]:
        return (*self._bracket.probes, *self._tests)

    @property
    def _good(self) -> list[Attainment]:
        return [one for one in self._probes if one.verdict is Verdict.GOOD and one.rate < self.most]

    def send(self, heat: Heat) -> None:
        """Sent off."""
        self.heat, self.busy = heat, True

    def short(self, rival: float) -> Heat:
        """The next short run; `rival`: what another serves, at which this one may be out."""
        if self.rate < rival < self.most and all(one.rate < rival for one in self._tests):
            return Heat(rival, test=True)
        return Heat(self._bracket.next_rate())

    def enter(self, found: Goodput, reason: str) -> None:
        """What came of the heat."""
        heat, self.busy, self.reason = self.heat, False, reason
        if heat.rate is None:
            self.lasting = heat.last
            if heat.last or found.rate >= heat.floor:
                self.found = found
                return
            self.most = min(self.most, heat.floor)
            self._tests += found.probes
            return
        one = found.probes[0]
        if heat.test:
            self._tests.append(one)
        else:
            self._bracket.enter(one)
        if one.surely_bad(self._target):
            self.most = min(self.most, one.rate)


class Race:
    """Placements, those that may serve most first."""

    def __init__(self, target: float, effort: Effort) -> None:
        self._target, self._effort = target, effort
        self._short = False
        self._waiting: list[Runner] = []
        self._running: list[Runner] = []

    def add(self, candidate: Candidate, bounds: Bounds, worth: float) -> None:
        """The next best by its bound."""
        if not self._waiting:
            self._short = bool(self._effort.shorter(bounds.rate))
        self._waiting.append(Runner(candidate, bounds, worth, self._target, self._short))

    def __iter__(self) -> Iterator[Runner]:
        """All; those that were never looked at last."""
        yield from (*self._running, *self._waiting)

    @property
    def worth(self) -> float:
        """What is seen to be served, if only in a short run."""
        return max((one.worth * one.rate for one in self._running), default=0.0)

    @property
    def settled_worth(self) -> float:
        """Of those whose goodput was found."""
        return _worth_of(self.best)

    @property
    def best(self) -> Runner | None:
        """Of those whose goodput was found."""
        found = (one for one in self._running if one.settled and one.rate > 0.0)
        return max(found, key=_worth_of, default=None)

    def short(self, least: float) -> Runner | None:
        """Whose next short run is due; none is, of those who may be worth more than `least` and the best."""
        least = max(least, self.worth)
        while self._waiting and self._waiting[0].coarse and self._waiting[0].worth * self._waiting[0].most > least:
            self._running.append(self._waiting.pop(0))
        left = [one for one in self._left(least) if not one.coarse]
        if self._waiting and self._waiting[0].worth * self._waiting[0].most > least * _SLACK:
            left.append(self._waiting[0])
        runner = max(left, key=lambda one: one.worth * one.most, default=None)
        if runner is not None:
            if self._waiting and runner is self._waiting[0]:
                self._running.append(self._waiting.pop(0))
            runner.send(runner.short(least / runner.worth))
        return runner

    def long(self, least: float) -> Runner | None:
        """Whose goodput is to be found next."""
        left = [one for one in self._left(max(least, self.worth)) if one.coarse]
        runner = max(left, key=lambda one: (one.worth * one.rate, one.worth * one.most), default=None)
        if runner is not None:
            runner.send(Heat(floor=max(least, self.settled_worth) / runner.worth))
        return runner

    def _left(self, least: float) -> list[Runner]:
        """Neither out nor busy nor settled."""
        free = (one for one in self._running if not (one.busy or one.settled))
        return [one for one in free if one.worth * one.most > least * _SLACK or one.worth * one.rate >= least]


class Races:
    """One for each kind, split and colocated: so that the best of the other kind is known too, if it is near."""

    def __init__(self, target: float, effort: Effort) -> None:
        self._races = {colocated: Race(target, effort) for colocated in (False, True)}
        self._runners: dict[Candidate, Runner] = {}  # those that were sent off
        self._over = False

    def __iter__(self) -> Iterator[Runner]:
        return itertools.chain(*self._races.values())

    @property
    def num_open(self) -> int:
        """Looked at, and their goodput not found."""
        return sum(one.found is None for one in self._runners.values())

    def add(self, candidate: Candidate, bounds: Bounds, worth: float) -> None:
        """The next best by its bound; `worth` of one request per second."""
        self._races[candidate.prefill is None].add(candidate, bounds, worth)

    def heats(self) -> Iterator[Runner | None]:
        """Whose heat is next, until the races are over; None: not before another is."""
        while True:
            runner = None if self._over else self._next()
            if runner is not None:
                self._runners[runner.candidate] = runner
                yield runner
            elif any(one.busy for one in self._runners.values()):
                yield None
            elif (best := self._unproven()) is not None:
                best.send(Heat(last=True))
                yield best
            else:
                return

    def enter(self, candidate: Candidate, found: Goodput | None, reason: str) -> bool:
        """What came of a heat; whether its goodput is found."""
        assert found is not None
        runner = self._runners[candidate]
        runner.enter(replace(found, at_rate=None), reason)
        return runner.found is not None

    def _unproven(self) -> Runner | None:
        """Who is to be looked at for long: the best, whereafter others may be in the race again; last that of the other
        kind, if it is near."""
        first, second = sorted((race.best for race in self._races.values()), key=_worth_of, reverse=True)
        if first is None or not first.lasting:
            return first
        if self._over or second is None or second.lasting or _worth_of(second) < _OTHER_KIND * _worth_of(first):
            return None
        self._over = True  # it has lost anyway: only by how much is known better
        return second

    def _next(self) -> Runner | None:
        for kind, race in self._races.items():
            if (runner := race.short(_OTHER_KIND * self._races[not kind].worth)) is not None:
                return runner
        for kind, race in sorted(self._races.items(), key=lambda one: -one[1].worth):
            if (runner := race.long(_OTHER_KIND * self._races[not kind].settled_worth)) is not None:
                return runner
        return None


def _worth_of(runner: Runner | None) -> float:
    return 0.0 if runner is None else runner.worth * runner.rate
