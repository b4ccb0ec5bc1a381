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
    attainment: float | None = None  # the share of requests that was to be good
    ttft_s: float | None = None  # the thresholds that were to be met
    tpot_s: float | None = None
    ttft_p90_s: float | None = None  # predicted at that rate
    tpot_p90_s: float | None = None
