"""All that changes while the cluster is simulated: records of requests, tasks and machines, and ordered lists.

Request r has two tasks: 2 r computes its prompt, 2 r + 1 its other tokens. Few arrays of records, not many of
columns: compiled functions hand each array from one to the next, and that is what costs.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from placement.compat.requests import Floats, Ints
from placement.compiled import compiled

PROMPT_POOL, TOKEN_POOL, MIXED_POOL = 0, 1, 2
MAX_BATCH = 512  # sequences
MAX_BATCH_TOKENS = 2048
MAX_PASSED_OVER = 4  # iterations that a task waits before it goes first
NEVER = np.inf

# The lists. Those of machine m:
POOL = 0  # requests with a task there, by arrival
PENDING = 1  # tasks that do not run, by (passed over, arrival)
PROMPTS = 2  # of the pending, the prompts as they came
BLOCKED = 3  # of the pending, the sequences that were preempted
BATCH = 4  # tasks that run
# and those of the cluster:
POOLS = 5  # three: the machines that take prompts, tokens, or both
FLOWS = 6  # one: the requests with a transfer
NUM_LISTS = 7

TOKENS, PROMPT_S, TOKEN_S = 0, 1, 2  # rows of a machine's curves

MACHINE = np.dtype(
    [
        ("room", np.int64),  # bytes
        ("home", np.int64),  # PROMPT_POOL or TOKEN_POOL
        ("used", np.int64),  # bytes, weights included
        ("promised", np.int64),  # the same in the cluster scheduler's books, which run ahead
        ("pending_tokens", np.int64),  # in the cluster scheduler's books
        ("batch_tokens", np.int64),  # of the last batch that was formed
        ("paused", np.int64),  # 1: the run of iterations has been cut short already
        ("iteration", np.float64),  # seconds
        ("contiguous", np.float64),  # iterations until the end
        ("ends", np.float64),  # when the run of iterations ends; NEVER while idle
        ("order", np.int64),  # of that event among those of one instant
    ]
)
TASK = np.dtype(
    [
        ("tokens", np.int64),  # in an iteration
        ("bytes", np.int64),  # of KV that it adds
        ("left", np.float64),  # iterations
        ("passed_over", np.int64),
        ("ran", np.int64),  # 1: its memory is taken
        ("blocked", np.int64),
        ("running", np.int64),
        ("chosen", np.int64),  # the last selection that it was in
    ]
)
REQUEST = np.dtype(
    [
        ("arrival", np.float64),
        ("prompt", np.int64),
        ("source", np.int64),  # machine of the prompt
        ("target", np.int64),  # and of the other tokens
        ("prompt_at", np.int64),  # machine where that task is in the pool; -1 before and after
        ("held", np.int64),  # bytes
        ("chosen", np.int64),  # the last selection that a task of it was in
        ("first_token", np.float64),
        ("exits", np.float64),  # -1 until its end
        ("flow_at", np.float64),  # when its transfer ends or is tried again
        ("flow_order", np.int64),
        ("flow_runs", np.int64),
    ]
)


class State(NamedTuple):
    machine: NDArray[Any]  # [M] MACHINE
    task: NDArray[Any]  # [2 n] TASK
    request: NDArray[Any]  # [n] REQUEST
    curves: Floats  # [M, 3, points]
    rows: NDArray[np.int32]  # [NUM_LISTS, M or more, longest]; list m of a kind is rows[kind, m, :num[kind, m]]
    num: Ints  # [NUM_LISTS, M or more]
    selection: Ints  # [MAX_BATCH + 1]: tasks; and how many, at the end
    counter: Ints  # [2]: selections so far, events so far


def lists_bytes(machines: int, num: int) -> int:
    """Memory of the lists of a State."""
    return math.prod(_lists_shape(machines, num)) * np.dtype(np.int32).itemsize


def _lists_shape(machines: int, num: int) -> tuple[int, int, int]:
    return NUM_LISTS, max(machines, MIXED_POOL + 1), max(2 * num, machines, MAX_BATCH)


def new_state(
    curves: Floats, room: Ints, home: Ints, weights: int, arrival: Floats, prompt: Ints, output: Ints, kv_bytes: int
) -> State:
    """An idle cluster and requests that have yet to come, sorted by arrival."""
    num, machines = len(arrival), len(room)
    machine, task, request = np.zeros(machines, MACHINE), np.zeros(2 * num, TASK), np.zeros(num, REQUEST)
    machine["room"], machine["home"], machine["ends"] = room, home, NEVER
    machine["used"] = machine["promised"] = weights
    task["tokens"][::2], task["tokens"][1::2] = prompt, 1
    task["bytes"][::2], task["bytes"][1::2] = (prompt + 1) * kv_bytes, (output - 1) * kv_bytes
    task["left"][::2], task["left"][1::2] = 1, output - 1
    request["arrival"], request["prompt"] = arrival, prompt
    request["prompt_at"] = request["first_token"] = request["exits"] = -1
    shape = _lists_shape(machines, num)
    rows, nums = np.empty(shape, np.int32), np.zeros(shape[:2], np.int64)
    for one, pool in enumerate(home):
        rows[POOLS, pool, nums[POOLS, pool]] = one
        nums[POOLS, pool] += 1
    selection = np.zeros(MAX_BATCH + 1, np.int64)
    return State(machine, task, request, curves, rows, nums, selection, np.array([0, num]))


@compiled
def insert(state: State, kind: int, which: int, place: int, item: int) -> None:
    row, num = state.rows[kind, which], state.num[kind, which]
    for at in range(num, place, -1):
        row[at] = row[at - 1]
    row[place] = item
    state.num[kind, which] = num + 1


@compiled
def append(state: State, kind: int, which: int, item: int) -> None:
    state.rows[kind, which, state.num[kind, which]] = item
    state.num[kind, which] += 1


@compiled
def remove(state: State, kind: int, which: int, item: int) -> None:
    """Take an item out; the others keep their order."""
    row, num = state.rows[kind, which], state.num[kind, which]
    place = 0
    while row[place] != item:
        place += 1
    for at in range(place, num - 1):
        row[at] = row[at + 1]
    state.num[kind, which] = num - 1
