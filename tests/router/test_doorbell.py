"""When news go out: at once on a loop with time, together on one without."""

from __future__ import annotations

import asyncio
import time

from router.doorbell import MAX_HOLD_S, Doorbell


def burn(seconds):
    """Use this thread's processor."""
    until_s = time.thread_time() + seconds
    while time.thread_time() < until_s:
        pass


def test_on_an_idle_loop_nothing_waits():
    async def run():
        bell, answered = Doorbell(), []
        bell.ring(lambda: answered.append("first"))
        bell.ring(lambda: answered.append("second"))
        assert not answered  # never in the midst of the ringer's work
        await asyncio.sleep(0)
        assert answered == ["first", "second"]

    asyncio.run(run())


def test_what_comes_while_answers_keep_the_loop_busy_goes_out_together():
    async def run():
        bell, rounds, done = Doorbell(), [], asyncio.Event()

        def answer():
            rounds.append(asyncio.get_running_loop().time())
            burn(0.02)

        bell.ring(answer)
        await asyncio.sleep(0)
        asked_s = asyncio.get_running_loop().time()
        bell.ring(answer)  # the first took all of the loop's time
        bell.ring(done.set)
        await asyncio.sleep(0)
        assert len(rounds) == 1 and not done.is_set()
        await done.wait()
        assert len(rounds) == 2 and rounds[1] - asked_s >= MAX_HOLD_S / 2

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
