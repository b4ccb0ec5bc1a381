"""Leases are durations on the owner's clock; expiry names each key once and hides none."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pdserve.clock import ManualClock
from scheduling.lease import LeaseTable


def test_lease_runs_out_and_is_named_once() -> None:
    """Held until its end, then expired exactly once."""
    clock = ManualClock()
    leases: LeaseTable[str] = LeaseTable(clock, 30.0)
    leases.grant("a")
    clock.advance(29.9)
    assert "a" in leases and leases.expired() == []
    clock.advance(0.1)
    assert "a" not in leases
    assert leases.expired() == ["a"]
    assert leases.expired() == []


def test_renewal_holds_on() -> None:
    """Renewed every five seconds it lives for ever."""
    clock = ManualClock()
    leases: LeaseTable[str] = LeaseTable(clock, 30.0)
    leases.grant("a")
    for _ in range(100):
        clock.advance(5.0)
        assert leases.renew("a")
    assert leases.remaining_s("a") == 30.0


def test_late_renewal_does_not_revive() -> None:
    """Run out but not yet swept: the owner may act on it, so nobody may renew it."""
    clock = ManualClock()
    leases: LeaseTable[str] = LeaseTable(clock, 30.0)
    leases.grant("a")
    clock.advance(31.0)
    assert not leases.renew("a")
    assert leases.remaining_s("a") == 0.0
    assert leases.expired() == ["a"]
    assert not leases.renew("unknown")


def test_a_live_lease_in_front_hides_no_dead_one() -> None:
    """The sweep looks behind the first live lease (bug class Z15)."""
    clock = ManualClock()
    leases: LeaseTable[str] = LeaseTable(clock, 30.0)
    leases.grant("first", 30.0)
    leases.grant("later", 5.0)
    leases.grant("soon", 3.0)
    clock.advance(6.0)
    assert leases.expired() == ["soon", "later"]
    assert "first" in leases and len(leases) == 1


def test_release_is_safe_to_repeat() -> None:
    """A released lease never expires."""
    clock = ManualClock()
    leases: LeaseTable[str] = LeaseTable(clock, 30.0)
    leases.grant("a")
    assert leases.release("a") and not leases.release("a")
    clock.advance(31.0)
    assert leases.expired() == []


class LeaseModel(RuleBasedStateMachine):
    """Against the plainest model: a dictionary of ends."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.leases: LeaseTable[int] = LeaseTable(self.clock, 8.0)
        self.ends: dict[int, float] = {}

    @rule(key=st.integers(0, 5), seconds=st.integers(1, 20))
    def grant(self, key: int, seconds: int) -> None:
        self.leases.grant(key, float(seconds))
        self.ends[key] = self.clock.now() + seconds

    @rule(key=st.integers(0, 5))
    def renew(self, key: int) -> None:
        live = self.ends.get(key, 0.0) > self.clock.now()
        assert self.leases.renew(key) == live
        if live:
            self.ends[key] = self.clock.now() + 8.0

    @rule(key=st.integers(0, 5))
    def release(self, key: int) -> None:
        assert self.leases.release(key) == (self.ends.pop(key, None) is not None)

    @rule(seconds=st.integers(0, 10))
    def sleep(self, seconds: int) -> None:
        self.clock.advance(float(seconds))

    @rule()
    def sweep(self) -> None:
        dead = {key for key, end in self.ends.items() if end <= self.clock.now()}
        assert set(self.leases.expired()) == dead
        for key in dead:
            del self.ends[key]

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        self.leases.check()
        assert len(self.leases) == len(self.ends)
        for key in range(6):
            assert (key in self.leases) == (self.ends.get(key, 0.0) > self.clock.now())


TestLeaseModel = LeaseModel.TestCase
TestLeaseModel.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
