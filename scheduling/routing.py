"""What a routing policy is asked, what it knows of the workers, who may be chosen at all, and what it answers.

The policies are in `routing_policies`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from pdserve.errors import NoWorker, PromptTooLong
from scheduling.latency import LatencyModel


class Role(Enum):
    """What a worker is for."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class RequestView:
    """What a policy knows of a request."""

    prompt_tokens: int
    max_tokens: int  # output tokens at most
    deadline_left_s: float
    cached_tokens: Mapping[str, int] = field(default_factory=dict)  # by worker: of the prompt, expected to be there

    def cached_on(self, worker: WorkerLoadView) -> int:
        """Tokens of the prompt that the worker is not expected to compute; fewer than there are."""
        return self.cached_tokens.get(worker.worker_id, 0)

    def lacking_on(self, worker: WorkerLoadView) -> int:
        """Those that it has to compute."""
        return self.prompt_tokens - self.cached_on(worker)


@dataclass(frozen=True, slots=True)
class WorkerLoadView:
    """What a policy knows of a worker: its last status and what was sent to it or ended since."""

    worker_id: str
    role: Role
    alive: bool
    num_blocks: int  # of the whole pool
    block_size: int
    free_blocks: int  # that a new sequence may take, evictable cached ones included
    promised_blocks: int  # to running sequences, for growth
    num_sequences: int  # sent to it and not ended
    uncomputed_tokens: int  # prompt tokens that it has still to compute
    chunk_tokens: int  # token budget of one step
    latency: LatencyModel

    @property
    def context_tokens(self) -> int:
        """What the decodes there read in each step: what the blocks in use hold, less prompts not yet computed."""
        return max(0, (self.num_blocks - self.free_blocks) * self.block_size - self.uncomputed_tokens)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def steps_for(self, prompt_tokens: int) -> int:
        return -(-prompt_tokens // self.chunk_tokens)


@dataclass(frozen=True, slots=True)
class Placement:
    """Who serves a request; without a prefill worker the decode worker computes the prompt itself."""

    prefill_worker: str | None
    decode_worker: str
    predicted_ttft_s: float  # 0 where nothing is known of the latency
    predicted_prefill_s: float  # the part of it that is the own prompt's, on an idle worker
    cached_tokens: int = 0  # of the prompt, that whoever computes it is expected to have


class RoutingPolicy(Protocol):
    """Chooses; must not keep or change the views."""

    def choose(self, request: RequestView, workers: Sequence[WorkerLoadView], now: float) -> Placement:
        """Place one request.

        Errors: `NoWorker` when no decode worker lives, `PromptTooLong` when no pool could ever hold the prompt,
        `QueueFull` when the predicted wait exceeds the deadline.
        """
        ...


@dataclass(frozen=True, slots=True)
class RoutingConfig:
    """What the policies share."""

    local_prefill_max_tokens: int = 0  # of a prompt, that a decode worker may lack and compute itself: no trip
    growth_tokens: int = 64  # output for which a decode worker should have room before it is preferred


@dataclass(frozen=True, slots=True)
class Candidates:
    """The live workers that can hold a request; `prefill` empty: computed on a decode worker."""

    prefill: tuple[WorkerLoadView, ...]
    decode: tuple[WorkerLoadView, ...]


def candidates(request: RequestView, workers: Sequence[WorkerLoadView]) -> Candidates:
    """Who may be chosen at all. Errors: `NoWorker`, `PromptTooLong`."""
    live = [worker for worker in workers if worker.alive]
    decode = [worker for worker in live if worker.role is Role.DECODE]
    if not decode:
        raise NoWorker("no decode worker is up", retry_after_s=2.0)
    tokens = request.prompt_tokens + 1
    fitting = tuple(worker for worker in decode if worker.blocks_for(tokens) <= worker.num_blocks)
    if not fitting:
        limit = max(worker.num_blocks * worker.block_size for worker in decode) - 1
        raise PromptTooLong(f"prompt has {request.prompt_tokens:,} tokens, the KV pool holds {limit:,}", field="prompt")
    prefill = (worker for worker in live if worker.role is Role.PREFILL)
    return Candidates(tuple(w for w in prefill if w.blocks_for(request.prompt_tokens) <= w.num_blocks), fitting)
