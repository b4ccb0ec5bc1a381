"""What tells a prefill worker from a decode worker: what it admits. Everything else is shared."""

from __future__ import annotations

from dataclasses import dataclass

from scheduling.sequence import SequenceMode


@dataclass(frozen=True, slots=True)
class RolePolicy:
    """A worker's role. A process may take another policy without loading weights again."""

    role: str  # "prefill" or "decode"
    admits: frozenset[SequenceMode]  # what it takes from the router; anything else is refused
