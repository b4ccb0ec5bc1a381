"""Tokens per second and the gaps between tokens over the last minute, from totals that only grow."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from router.dashboard.entries import rounded, rounded_values
from router.dashboard.source import Activity

_WINDOW = 60  # looks; there is one a second
_SOON = 10
_SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


class Rates:
    """The last minute's looks."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, Activity]] = deque(maxlen=_WINDOW + 1)

    def look(self, activity: Activity, now_s: float) -> None:
        self._looks.append((now_s, activity))

    def summary(self) -> dict[str, Any]:
        """None for what cannot be said yet."""
        return {"tokens_per_s": rounded(self._tokens_per_s(), 3), "itl_s": rounded_values(self._gaps())}

    def _tokens_per_s(self) -> float | None:
        if len(self._looks) < 2:
            return None
        (first_s, first), (last_s, last) = self._looks[max(0, len(self._looks) - 1 - _SOON)], self._looks[-1]
        return (last.generated_tokens - first.generated_tokens) / max(last_s - first_s, 1e-3)

    def _gaps(self) -> dict[str, float | None]:
        if len(self._looks) < 2:
            return dict.fromkeys(_SHARES)
        first, last = self._looks[0][1], self._looks[-1][1]
        counts = [b - a for a, b in zip(first.gap_counts, last.gap_counts, strict=True)]
        return {name: _quantile(last.gap_bounds, counts, share) for name, share in _SHARES.items()}


def _quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """Within its bucket a value is taken to lie evenly, as Prometheus does; beyond the last bound, at it."""
    wanted = share * sum(counts)
    if wanted == 0:
        return None
    below = 0.0
    for index, count in enumerate(counts):
        if below + count >= wanted and count:
            if index == len(bounds):
                break
            low = bounds[index - 1] if index else 0.0
            return low + (bounds[index] - low) * (wanted - below) / count
        below += count
    return bounds[-1]
