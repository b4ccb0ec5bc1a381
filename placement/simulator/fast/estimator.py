"""`scheduling.latency.OnlineLatencyEstimator`, compiled."""

from __future__ import annotations

import math

from placement.compiled import compiled_apart
from placement.compiled import compiled_inner as compiled
from placement.simulator.fast.records import Records
from scheduling.latency import MIN_STEPS

_KEEP = 0.5 ** (1.0 / 1000.0)
_RIDGE = 1e-6
_SCALES = (1.0, 256.0, 8.0, 4096.0)


@compiled
def observe(worker: Records, tokens: int, sequences: int, context: int, seconds: float) -> None:
    """`observe`."""
    if not math.isfinite(seconds) or seconds <= 0.0:
        return
    x = (
        1.0 / _SCALES[0] / seconds,
        float(tokens) / _SCALES[1] / seconds,
        float(sequences) / _SCALES[2] / seconds,
        float(context) / _SCALES[3] / seconds,
    )
    for i in range(4):
        for k in range(4):
            worker.matrix[i, k] = worker.matrix[i, k] * _KEEP + x[i] * x[k]
        worker.right[i] = worker.right[i] * _KEEP + x[i]
    worker.observed += 1


@compiled_apart
def coefficients(w: Records, worker: Records, best: Records) -> None:
    """`coefficients`, into `best` [4]."""
    if worker.observed < MIN_STEPS:
        for i in range(4):
            best[i] = worker.prior[i]
        return
    for i in range(4):
        best[i] = 0.0
    best_gain = -1.0
    used, rows, fitted = w.used, w.rows, w.fitted
    absent = 0
    for i in range(4):
        absent |= (0 if worker.matrix[i, i] > 0.0 else 1) << (3 - i)
    for left_out in range(16):  # as itertools.product((True, False), repeat=4)
        if left_out & absent:
            continue  # the same as one before: who is not there cannot be left out
        n = 0
        for i in range(4):
            if (left_out >> (3 - i)) & 1 == 0 and worker.matrix[i, i] > 0.0:
                used[n] = i
                n += 1
        if n == 0:
            continue
        _solve(worker, used, n, rows, fitted)
        gain, least = 0.0, math.inf
        for j in range(n):
            gain += worker.right[used[j]] * fitted[j]
            least = min(least, fitted[j])
        if least >= 0.0 and gain > best_gain:
            for i in range(4):
                best[i] = 0.0
            best_gain = gain
            for j in range(n):
                best[used[j]] = fitted[j]
    for i in range(4):
        best[i] = best[i] / _SCALES[i]


@compiled
def _solve(worker: Records, used: Records, n: int, rows: Records, solution: Records) -> None:
    """`_solve`, in `rows`, into `solution`."""
    for i in range(n):
        for k in range(n):
            rows[i, k] = worker.matrix[used[i], used[k]] * (1.0 + _RIDGE * (1.0 if used[i] == used[k] else 0.0))
        rows[i, n] = worker.right[used[i]]
    for i in range(n):
        pivot = i
        for r in range(i + 1, n):
            if abs(rows[r, i]) > abs(rows[pivot, i]):
                pivot = r
        if pivot != i:
            for k in range(n + 1):
                rows[i, k], rows[pivot, k] = rows[pivot, k], rows[i, k]
        for r in range(i + 1, n):
            factor = rows[r, i] / rows[i, i]
            for k in range(i, n + 1):
                rows[r, k] -= factor * rows[i, k]
    for i in range(n - 1, -1, -1):
        known = 0.0
        for k in range(i + 1, n):
            known += rows[i, k] * solution[k]
        solution[i] = (rows[i, n] - known) / rows[i, i]
