"""What a client asked, typed but not judged. None means absent everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pdserve.sampling import Constraint
from router.text import ChatMessage, ChatOptions


@dataclass(frozen=True, slots=True)
class PromptText:
    """Text to continue."""

    text: str
    add_special_tokens: bool = True  # BOS, where the model wants it


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Token ids, taken as they are."""

    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class PromptChat:
    """A conversation to answer."""

    messages: tuple[ChatMessage, ...]
    options: ChatOptions = field(default_factory=ChatOptions)


Prompt = PromptText | PromptTokens | PromptChat


@dataclass(frozen=True, slots=True)
class SamplingDraft:
    """How tokens are to be chosen."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    logit_bias: Sequence[tuple[int, float]] = ()
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    constraint: Constraint | None = None
    constraint_field: str = ""  # as the client knows it


@dataclass(frozen=True, slots=True)
class SloDraft:
    """What latency is wanted."""

    slo_class: str = ""
    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True, slots=True)
class OutputDraft:
    """What the text of an answer shows."""

    skip_special_tokens: bool = True
    include_stop: bool = False  # the stop string, or the token, that ended it


@dataclass(frozen=True, slots=True)
class RequestDraft:
    """One request. With several prompts or n > 1 it becomes several sequences."""

    prompts: tuple[Prompt, ...]
    sampling: SamplingDraft
    default_temperature: float  # where neither the client nor the checkpoint says: 0 on gRPC, 1 on HTTP
    default_max_tokens: int | None  # likewise; None is the rest of the context
    use_generation_config: bool  # whether the checkpoint's own defaults count
    sampling_prefix: str = ""  # put before a sampling field's name in messages: "sampling." on gRPC
    prompt_field: str = "prompt"  # as the client knows it
    request_id: str = ""
    model: str = ""
    num_choices: int = 1
    slo: SloDraft = field(default_factory=SloDraft)
    priority: int = 0
    tenant: str = ""
    output: OutputDraft = OutputDraft()
    keep_prompt_tokens: int | None = None  # a longer prompt loses its beginning; -1: what leaves room for max_tokens
    time_left_s: float | None = None  # until the client's deadline
    trace_parent: str | None = None  # W3C traceparent, well formed
