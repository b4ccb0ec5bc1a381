"""How a client asks for a completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pdserve.sampling import Constraint
from pdserve.slo import Slo

DEFAULT_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """How to generate; None leaves it to the server, whose defaults are the protocol's (greedy)."""

    max_tokens: int | None = None  # None: the rest of the context
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # None: none; n: the chosen token's and the n best
    constraint: Constraint | None = None  # what the text must be
    slo: Slo | None = None
    priority: int = 0  # lower runs earlier
    tenant: str = ""
    model: str = ""  # empty: the served one
    request_id: str = ""  # empty: the router makes one
    timeout_s: float = DEFAULT_TIMEOUT_S  # the request's deadline, from now
