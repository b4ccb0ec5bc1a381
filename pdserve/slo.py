"""Service-level objectives of a request, and the verdict on it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Blame(Enum):
    """The phase that made a request miss its SLO."""

    NONE = "none"
    QUEUE = "queue"
    PREFILL = "prefill"
    TRANSFER = "transfer"
    DECODE_WAIT = "decode_wait"
    DECODE = "decode"
    WORKER_LOSS = "worker_loss"


@dataclass(frozen=True, slots=True)
class Slo:
    """Latency wanted; None: no threshold."""

    slo_class: str = "default"
    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a request's time went, seconds; the five phases add up to its end at the router (docs/slo.md)."""

    queue_s: float  # received until the prompt's first step
    prefill_s: float  # first step of the prompt until token 1 left the router
    transfer_s: float  # token 1, or room on the decode worker, until that owned the KV; 0 when nothing moved
    decode_wait_s: float  # token 1 until there was room, and KV owned until the sequence's first decode step
    decode_s: float  # first decode step until the last token
    ttft_s: float
    tpot_s: float  # 0 when fewer than two tokens
    prefill_worker: str
    decode_worker: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the SLO was met; a threshold that is not set is met."""

    met_ttft: bool
    met_tpot: bool
    blame: Blame
