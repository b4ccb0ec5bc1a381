"""When news go out: at once on a loop with time, together on one without."""

from __future__ import annotations

import asyncio
import time

from router.doorbell import MAX_HOLD_S, QUIET_S, Doorbell, thread_needed_s


def test_on_an_idle_loop_nothing_waits():
    async def run():
        bell, answered = Doorbell(), []
        bell.ring(lambda: answered.append("first"))
        bell.ring(lambda: answered.append("second"))
        assert not answered  # never in the midst of the ringer's work
        await asyncio.sleep(0)
        assert answered == ["first", "second"]

    asyncio.run(run())


class Loop:
    """A loop's clocks, in the test's hand."""

    def __init__(self, kind=Doorbell):
        self.now_s = self.busy_s = 0.0
        self.bell = kind(lambda: self.now_s, lambda: self.busy_s)

    def spend(self, seconds, busy_s):
        self.now_s += seconds
        self.busy_s += busy_s


def test_what_comes_while_answers_took_the_loops_time_goes_out_together():
    async def run():
        loop, answered, done = Loop(), [], asyncio.Event()
        loop.bell.ring(lambda: answered.append("first"))
        await asyncio.sleep(0)
        loop.spend(0.02, busy_s=0.02)  # the answers took all of it
        loop.bell.ring(lambda: answered.append("second"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert answered == ["first"]
        loop.bell.ring(done.set)
        await asyncio.wait_for(done.wait(), 5)  # nothing more comes
        assert answered == ["first", "second"]

    asyncio.run(run())


class NeverQuiet(Doorbell):
    """More comes all the time."""

    has_more = property(lambda self: True, lambda self, value: None)


def test_the_wait_goes_on_while_more_comes_and_has_an_end():
    async def run():
        loop, answered, later = Loop(NeverQuiet), asyncio.Event(), asyncio.Event()
        loop.bell.ring(lambda: None)
        await asyncio.sleep(0)
        loop.spend(0.02, busy_s=0.02)
        loop.bell.ring(answered.set)
        asyncio.get_running_loop().call_later(5 * QUIET_S, later.set)
        await later.wait()
        assert not answered.is_set()  # on the test's clock no time has passed
        loop.spend(MAX_HOLD_S, busy_s=0.0)
        await asyncio.wait_for(answered.wait(), 5)

    asyncio.run(run())


def test_after_enough_time_for_others_nothing_waits():
    async def run():
        loop, answered = Loop(), []
        loop.bell.ring(lambda: None)
        await asyncio.sleep(0)
        loop.spend(0.02, busy_s=0.02)
        loop.spend(0.04, busy_s=0.0)
        loop.bell.ring(lambda: answered.append("second"))
        await asyncio.sleep(0)
        assert answered == ["second"]

    asyncio.run(run())


def test_who_rings_while_answering_is_answered_again():
    async def run():
        bell, turns = Doorbell(), []

        def answer():
            turns.append(len(turns))
            if len(turns) < 3:
                bell.ring(answer)
            else:
                done.set()

        done = asyncio.Event()
        bell.ring(answer)
        await asyncio.wait_for(done.wait(), 5)
        assert turns == [0, 1, 2]

    asyncio.run(run())


def test_a_thread_that_works_needs_time():
    before_s = thread_needed_s()
    until_s = time.thread_time() + 0.03
    while time.thread_time() < until_s:
        pass
    assert thread_needed_s() - before_s >= 0.01  # the kernel may count in ticks
