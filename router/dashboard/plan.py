"""What the operator asked for, to be held against what is there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Planned:
    """The cluster as it was started, and what a plan predicted of it."""

    prefill: int  # workers
    decode: int
    plan: str | None = None  # name of the plan file; None: nobody planned, these are flags and defaults
    goodput_rps: float | None = None  # predicted, requests per second of the whole cluster
    attainment: float | None = None  # the share of requests for which it was predicted
    ttft_s: float | None = None  # the thresholds that it was predicted for
    tpot_s: float | None = None
