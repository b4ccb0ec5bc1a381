"""What goes into a simulation and what comes out of it, per request."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum

from pdserve.ids import SequenceKey
from placement.simulator.worker import SimWorker
from placement.workload.workload import Workload


@dataclass(frozen=True, slots=True)
class SimRequest:
    """One request of a workload."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    prefix_ids: tuple[int, ...] = ()  # equal leading ids are equal tokens, `prefix_tokens` each
    prefix_tokens: int = 512
    deadline_s: float = math.inf  # from its arrival
    slo_class: str = "default"


class Outcome(IntEnum):
    """How a request ended."""

    UNFINISHED = 0
    FINISHED = 1
    REJECTED = 2
    FAILED = 3


@dataclass(slots=True, eq=False)
class RequestLife:
    """One request on its way through; instants are those of the virtual clock, as the router sees them."""

    index: int
    request: SimRequest
    key: SequenceKey
    prefill: SimWorker | None = None
    decode: SimWorker | None = None
    outcome: Outcome = Outcome.UNFINISHED
    error: str = ""
    num_tokens: int = 0
    first_s: float | None = None
    last_s: float = 0.0
    prefill_s: float = 0.0  # first step of the prompt until token 1, on its worker
    committed_s: float | None = None
    decode_wait_s: float = 0.0
    max_gap_s: float = 0.0
    prefix_keys: list[int] = field(default_factory=list)  # of the prompt, for the router's directory
    expected_cached_tokens: int = 0
    cached_tokens: int = 0
    ended: bool = field(default=False)

    @property
    def computing(self) -> SimWorker | None:
        """Who computes the prompt."""
        return self.prefill or self.decode

    @property
    def parties(self) -> tuple[SimWorker, ...]:
        return tuple(worker for worker in (self.prefill, self.decode) if worker is not None)


def requests_of(workload: Workload, deadline_s: float = math.inf) -> list[SimRequest]:
    """The rows of a workload."""
    prefix_tokens = workload.prefixes.block_tokens if workload.prefixes is not None else 512
    return [
        SimRequest(
            row.arrival_s, row.prompt_tokens, row.output_tokens, row.prefix, prefix_tokens, deadline_s, row.slo_class
        )
        for row in workload
    ]


def prompt_token_ids(request: SimRequest, index: int) -> list[int]:
    """Tokens that are equal where the workload says that prefixes are, and the request's own after that."""
    if not request.prefix_ids:
        return [-1 - index] * request.prompt_tokens
    tokens: list[int] = []
    for prefix_id in request.prefix_ids[: -(-request.prompt_tokens // request.prefix_tokens)]:
        tokens += [prefix_id] * request.prefix_tokens
    del tokens[request.prompt_tokens :]
    return tokens + [-1 - index] * (request.prompt_tokens - len(tokens))
