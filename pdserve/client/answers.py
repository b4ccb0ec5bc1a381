"""What a client gets back."""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.sampling import FinishReason, TokenLogprobs
from pdserve.slo import Timing, Verdict


@dataclass(frozen=True, slots=True)
class Chunk:
    """What is new."""

    request_id: str
    token_ids: tuple[int, ...]
    text: str  # may lag behind token_ids
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of a request that was served, and all of it."""

    request_id: str
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int  # of the prompt, found in a prefix cache
    timing: Timing
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class ServedWorker:
    """One worker of a server."""

    id: str
    role: str
    device: str
    up: bool


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server serves."""

    model: str
    max_model_len: int
    vocab_size: int
    version: str
    workers: tuple[ServedWorker, ...]
