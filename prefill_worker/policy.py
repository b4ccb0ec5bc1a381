"""A prefill worker computes prompts, samples token 1 and hands the KV over."""

from __future__ import annotations

from scheduling.sequence import SequenceMode
from worker.policy import RolePolicy

PREFILL = RolePolicy("prefill", frozenset({SequenceMode.PREFILL}))
