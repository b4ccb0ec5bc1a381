"""Fields that OpenAI or vLLM define and this server does not implement, with the values that change nothing.

At such a value a request is served; at any other it is refused by the field's name: never ignored silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]


def _is(*values: object) -> Check:
    """One of these very values; True is not 1 and 1.0 is not True."""
    return lambda value: any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)


def _empty(value: Any) -> bool:
    return value in ("", [], {})


def _anything(kind: type) -> Check:
    """Only a note to the server: it never changes the answer."""
    return lambda value: isinstance(value, kind)


_NEVER: Check = lambda value: False  # noqa: E731

COMMON: Mapping[str, Check] = {
    # OpenAI
    "user": _anything(str),
    "metadata": _anything(dict),
    "store": _is(False),
    "service_tier": _is("auto", "default"),
    "safety_identifier": _anything(str),
    "prompt_cache_key": _anything(str),
    "prompt_cache_retention": _anything(str),
    # vLLM: sampling
    "use_beam_search": _is(False),
    "length_penalty": _is(1),
    "allowed_token_ids": _empty,
    "bad_words": _empty,
    "logits_processors": _empty,
    "thinking_token_budget": _NEVER,
    "repetition_detection": _NEVER,
    # vLLM: prompt and output
    "prompt_logprobs": _NEVER,
    "logprob_token_ids": _empty,
    "structural_tag": _NEVER,
    "guided_decoding_backend": _anything(str),
    "guided_whitespace_pattern": _NEVER,
    "cache_salt": _NEVER,
    "kv_transfer_params": _empty,
    "vllm_xargs": _empty,
    "mm_processor_kwargs": _empty,
    "return_prompt_text": _is(False),
}

COMPLETIONS: Mapping[str, Check] = {
    **COMMON,
    "suffix": _empty,
    "prompt_embeds": _NEVER,
}

CHAT: Mapping[str, Check] = {
    **COMMON,
    "functions": _empty,
    "function_call": _is("none", "auto"),
    "modalities": _is(["text"]),
    "audio": _NEVER,
    "prediction": _NEVER,
    "reasoning_effort": _NEVER,
    "reasoning": _NEVER,
    "verbosity": _is("medium"),
    "web_search_options": _NEVER,
    "moderation": _NEVER,
    "echo": _is(False),
    "documents": _empty,
    "chat_template": _NEVER,
    "include_reasoning": _anything(bool),  # nothing is parsed as reasoning
    "media_io_kwargs": _empty,
}

MESSAGE: Mapping[str, Check] = {
    "function_call": _NEVER,
    "refusal": _empty,
    "audio": _NEVER,
    "reasoning": _empty,
    "reasoning_content": _empty,
    "annotations": _empty,
}

TOKENIZE_CHAT: Mapping[str, Check] = {
    "documents": _empty,
    "chat_template": _NEVER,
    "media_io_kwargs": _empty,
    "mm_processor_kwargs": _empty,
}
