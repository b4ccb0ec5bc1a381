"""Steps that only decode, known ahead: while all sequences of a worker are steady, nothing but time changes in a step.

So a turn that forms such a step computes when it ends, and when the next one will, until one of them changes something
or `MOST` are known; the last of them alone becomes an event. Whoever comes to the worker before that, a command or its
status, first brings its record up to date: `catch_up`. A command ends it: the step under way is the last one known.

Equal instants: the ends passed over were no events, and have no place among the events of their instant. Where one of
them is, to the last bit, that of something that concerns the worker, the run is `unclear`: it is done again without.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from placement.compiled import compiled_inner as compiled
from placement.compiled import compiled_lean
from placement.simulator.fast.estimator import observe
from placement.simulator.fast.events import Queue, drop_due, push_at, set_due
from placement.simulator.fast.records import MESSAGE, STEP, TURN_AT, Records
from placement.simulator.fast.steady import KEY, Steady, grow_steady, note_gap, settle
from placement.simulator.fast.steps import decode_parts, decode_s
from placement.simulator.fast.store import Cache

MOST = 16


class Ahead(NamedTuple):
    """[workers, MOST]: of the steps known ahead."""

    ends_s: Any
    took_s: Any


def ahead_rows(num_workers: int) -> Ahead:
    """For workers that have no sequence yet."""
    return Ahead(np.zeros((num_workers, MOST)), np.zeros((num_workers, MOST)))


@compiled
def look_ahead(
    queue: Queue,
    w: Records,
    worker: Records,
    steady: Steady,
    ahead: Ahead,
    params: Records,
    index: int,
    took_s: float,
) -> None:
    """A step of nobody but those that are steady was just formed: when it ends, and those after it."""
    ends_s, all_s = ahead.ends_s[index], ahead.took_s[index]
    end_s = w.now_s + took_s
    ends_s[0], all_s[0] = end_s, took_s
    num, step, free, pause_s = 1, worker.steps + 1, worker.free, w.delays[STEP]
    parts, context = decode_parts(params, worker.steady), worker.steady_base + worker.steady * worker.steps
    while num < MOST and step < worker.next_end:
        free -= steady.growing[index, step % worker.size]
        if free < 0:
            break
        took_s = decode_s(parts, context)
        end_s = end_s + pause_s + took_s
        ends_s[num], all_s[num] = end_s, took_s
        context += worker.steady
        num += 1
        step += 1
    worker.ahead, worker.at = num, 0
    set_due(queue, w, index, end_s, 1 if num == 1 else 0)


@compiled
def catch_up(
    w: Records, worker: Records, cache: Cache | None, requests: Records, seqs: Records, steady: Steady, ahead: Ahead,
    index: int,
) -> None:  # fmt: skip
    """Up to this instant: `complete` and `turn` of the steps known ahead that ended or began before it."""
    while True:
        end_s = ahead.ends_s[index, worker.at]
        if worker.stepping == 1:
            if worker.at == worker.ahead - 1:
                return
            if end_s >= w.now_s:
                break
            worker.stepping = 0
            w.num_events += 1
            note_gap(worker, cache, requests, seqs, steady, index, end_s + w.delays[MESSAGE])
        end_s += w.delays[STEP]
        if end_s >= w.now_s:
            break
        worker.at += 1
        worker.stepping = 1
        w.num_events += 1
        grow_steady(worker, cache, steady.growing[index, (worker.steps + 1) % worker.size])
        _count(worker, ahead.took_s[index, worker.at])
    if end_s == w.now_s:
        w.unclear = 1


@compiled
def _count(worker: Records, took_s: float) -> None:
    if worker.observes == 1:
        observe(worker, 0, worker.steady, worker.steady_base + worker.steady * worker.steps, took_s)
    worker.steps += 1
    worker.busy_s += took_s
    worker.decode_tokens += worker.steady
    worker.peak = max(worker.peak, worker.num_blocks - worker.free)


@compiled
def interrupt(
    queue: Queue, w: Records, workers: Records, cache: Cache | None, requests: Records, seqs: Records, steady: Steady,
    ahead: Ahead,
) -> None:  # fmt: skip
    """Commands have come to those touched: the step under way, or the turn that is due, is an event."""
    while w.touched >= 0:
        index = w.touched
        w.touched, workers[index].touched = workers[index].touched - 2, 0
        _interrupt(queue, w, workers[index], cache, requests, seqs, steady, ahead, index)


@compiled
def _interrupt(
    queue: Queue, w: Records, worker: Records, cache: Cache | None, requests: Records, seqs: Records, steady: Steady,
    ahead: Ahead, index: int,
) -> None:  # fmt: skip
    catch_up(w, worker, cache, requests, seqs, steady, ahead, index)
    if worker.stepping == 0:
        drop_due(queue, w, index)
        worker.woken = 1
        push_at(queue, w, ahead.ends_s[index, worker.at] + w.delays[STEP], TURN_AT, index, 0)
    elif worker.at < worker.ahead - 1:
        set_due(queue, w, index, ahead.ends_s[index, worker.at], 0)
    worker.ahead = 0


@compiled_lean
def settle_all(
    w: Records, workers: Records, cache: Cache | None, requests: Records, seqs: Records, steady: Steady, ahead: Ahead
) -> None:  # fmt: skip
    """At the end of a run that was given up."""
    for index in range(len(workers)):
        worker = workers[index]
        if worker.ahead > 0:
            catch_up(w, worker, cache, requests, seqs, steady, ahead, index)
        for k in range(worker.steady):
            s = steady.members[index, k] & (KEY - 1)
            settle(worker, cache, requests, seqs, steady, index, s, worker.steps - worker.stepping)
