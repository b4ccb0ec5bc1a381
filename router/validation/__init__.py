"""One set of rules for both front doors: from what a client asked to what the core serves."""

from router.validation.constraint import ConstraintTrials
from router.validation.draft import (
    OutputDraft,
    Prompt,
    PromptChat,
    PromptText,
    PromptTokens,
    RequestDraft,
    SamplingDraft,
    SloDraft,
)
from router.validation.generation_config import load_generation_defaults
from router.validation.identity import check_model, resolve_request_id, resolve_tenant
from router.validation.prompt import check_prompt_texts, check_prompt_tokens
from router.validation.request import check_priority, deadline_after, resolve_sampling, resolve_slo

__all__ = [
    "ConstraintTrials",
    "OutputDraft",
    "Prompt",
    "PromptChat",
    "PromptText",
    "PromptTokens",
    "RequestDraft",
    "SamplingDraft",
    "SloDraft",
    "check_model",
    "check_priority",
    "check_prompt_texts",
    "check_prompt_tokens",
    "deadline_after",
    "load_generation_defaults",
    "resolve_request_id",
    "resolve_sampling",
    "resolve_slo",
    "resolve_tenant",
]
