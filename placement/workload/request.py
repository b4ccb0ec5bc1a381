"""One request of a workload: when it comes and how long it is."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_BLOCK_TOKENS = 512  # of Mooncake's traces
MAX_TOKENS = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class WorkloadRequest:
    """What is known of a request before it is served."""

    arrival_s: float  # since the workload's begin; 0 where it has no times
    prompt_tokens: int  # at least 1
    output_tokens: int  # at least 1
    prefix: tuple[int, ...] = ()  # one id per block of the prompt, from its start; equal ids are equal blocks
    session: int | None = None  # requests of one conversation share it
    slo_class: str = "default"
    tenant: str = ""
    text: str | None = None  # the prompt itself, where the source has it
