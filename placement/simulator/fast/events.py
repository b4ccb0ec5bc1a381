"""The compiled event queue: a heap of (time, order given, kind, one number, another)."""

from __future__ import annotations

import heapq
from typing import Any

from numba import njit

from placement.simulator.fast.records import Records

Heap = list[Any]


@njit(cache=True)
def push(heap: Heap, w: Records, delay_s: float, kind: int, a: int, b: int) -> None:
    """`EventQueue.after`."""
    w.given += 1
    time_s = w.now_s + delay_s
    heapq.heappush(heap, (max(time_s, w.now_s), w.given, kind, a, b))


@njit(cache=True)
def push_at(heap: Heap, w: Records, time_s: float, kind: int, a: int, b: int) -> None:
    """`EventQueue.at`."""
    w.given += 1
    heapq.heappush(heap, (max(time_s, w.now_s), w.given, kind, a, b))
