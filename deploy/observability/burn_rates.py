"""How fast the error budget may burn before someone is called: factors that a target can reach.

A burn rate is the share of requests that miss their SLO, divided by the share that may (1 - target). It is never above
1 / (1 - target): 10 at a target of 90 %. The usual factors, 14.4 and 6, are made for 99.9 %; at 90 % the first can
never fire and the second fires only when more than 60 % miss. So each factor is the usual one or, where that is too
near the end, a power of the greatest burn rate, which lies between 1 and it for every target.

target    greatest    fast    medium    slow
0.9             10     5.0       2.5       1
0.95            20     8.1       3.3       1
0.99           100    14.4       6.0       1
0.999         1000    14.4       6.0       1

Source: "Alerting on SLOs", The Site Reliability Workbook (2018), chapter 5, for windows and the usual factors.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BurnRate:
    """One alert: it fires while both windows burn faster than the factor."""

    name: str
    severity: str
    factor: float
    long: str  # window that says it matters
    short: str  # window that says it still goes on

    def max_misses(self, target: float) -> float:
        """The share of requests above which it fires."""
        return self.factor * (1.0 - target)


_KINDS = (
    ("Fast", "page", 14.4, 0.7, "1h", "5m"),
    ("Medium", "page", 6.0, 0.4, "6h", "30m"),
    ("Slow", "ticket", 1.0, 0.0, "3d", "6h"),
)
"""Name, severity, the usual factor, the power of the greatest burn rate, long and short window."""

WINDOWS = ("5m", "30m", "1h", "6h", "3d")


def burn_rates(target: float) -> list[BurnRate]:
    """The alerts for a target attainment, fastest first; each factor is at least 1 and below the greatest."""
    assert 0.0 < target < 1.0
    greatest = 1.0 / (1.0 - target)
    return [
        BurnRate(name, severity, round(min(usual, greatest**power), 3), long, short)
        for name, severity, usual, power, long, short in _KINDS
    ]
