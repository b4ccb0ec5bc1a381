"""A decode worker receives KV and generates from token 2 on; or, colocated, computes the prompt itself."""

from __future__ import annotations

from scheduling.sequence import SequenceMode
from worker.policy import RolePolicy

DECODE = RolePolicy("decode", frozenset({SequenceMode.DECODE, SequenceMode.FULL}))
