"""How long a side keeps something for another without hearing from it: durations, decided by the owner alone.

    grant ──> held ──renew──> held ──duration passes──> expired() names it, once
                └──release──> gone

Only the owner's clock counts; a holder elsewhere stops a margin earlier. A lease that has run out cannot be renewed,
swept or not: whoever acted on the expiry must not be overtaken by a late renewal.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Generic, TypeVar

from pdserve.clock import Clock

LEASE_S = 30.0
"""Default length of a lease; renewed every RENEW_S while the request lives."""

RENEW_S = 5.0

K = TypeVar("K", bound=Hashable)


class LeaseTable(Generic[K]):
    """The leases that one owner has granted. Not thread-safe: one owner, one thread."""

    def __init__(self, clock: Clock, duration_s: float = LEASE_S) -> None:
        assert duration_s > 0.0
        self._clock = clock
        self.duration_s = duration_s
        self._longest_s = duration_s
        self._ends_s: dict[K, float] = {}

    def __len__(self) -> int:
        return len(self._ends_s)

    def __contains__(self, key: object) -> bool:
        """Whether it is held and has not run out."""
        return key in self._ends_s and self._ends_s[key] > self._clock.now()

    def held(self) -> list[K]:
        """Every key not yet swept or released, run out or not."""
        return list(self._ends_s)

    def grant(self, key: K, duration_s: float | None = None) -> None:
        """Hold `key` from now for `duration_s` (default: the table's); an older lease of it is replaced."""
        length_s = self.duration_s if duration_s is None else duration_s
        assert 0.0 < length_s < math.inf
        self._longest_s = max(self._longest_s, length_s)
        self._ends_s[key] = self._clock.now() + length_s

    def renew(self, key: K, duration_s: float | None = None) -> bool:
        """Hold it from now again; False when it is unknown or has run out (it then stays as it is)."""
        if key not in self:
            return False
        self.grant(key, duration_s)
        return True

    def release(self, key: K) -> bool:
        """Forget it; False when it was not there. Safe to repeat."""
        return self._ends_s.pop(key, None) is not None

    def remaining_s(self, key: K) -> float:
        """Seconds left, 0 when it has run out or is unknown."""
        return max(0.0, self._ends_s[key] - self._clock.now()) if key in self._ends_s else 0.0

    def expired(self) -> list[K]:
        """Every lease that has run out since the last call, in order of its end; each is named once and forgotten.

        Looks at all of them: a live lease in front never hides a dead one behind it.
        """
        now_s = self._clock.now()
        dead = sorted((end_s, n, key) for n, (key, end_s) in enumerate(self._ends_s.items()) if end_s <= now_s)
        for _, _, key in dead:
            del self._ends_s[key]
        return [key for _, _, key in dead]

    def check(self) -> None:
        """No lease ends later than the longest one granted could."""
        latest_s = self._clock.now() + self._longest_s
        for key, end_s in self._ends_s.items():
            assert end_s <= latest_s, f"lease of {key} ends {end_s - latest_s:.3f} s after the longest one granted"
