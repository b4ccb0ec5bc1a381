"""The two OpenAI request bodies as one draft."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pdserve.errors import BadSampling, PromptTooLong, RequestError
from router.http_front import known_fields
from router.http_front.chat_body import parse_conversation, parse_tools
from router.http_front.fields import Fields, as_integers, wrong_type
from router.http_front.response_format import parse_constraint
from router.http_front.tool_choice import ToolChoice, calls_only, parse_tool_choice
from router.limits import Limits
from router.text import ForcedCallsParser, ToolCallParser
from router.validation import (
    OutputDraft,
    Prompt,
    PromptText,
    PromptTokens,
    RequestDraft,
    SamplingDraft,
    SloDraft,
)

COMPLETIONS_MAX_TOKENS = 16
"""OpenAI's default."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to one of the two endpoints."""

    draft: RequestDraft
    stream: bool
    include_usage: bool  # in an event of its own, last
    continuous_usage: bool  # in every event
    return_token_ids: bool
    return_timing: bool
    tokens_as_ids: bool  # tokens of logprobs are shown as token_id:N
    echo: bool = False  # the prompt is part of the text
    calls_tools: bool = False  # calls of tools are looked for in the text
    max_tool_calls: int | None = None  # later ones are not shown
    tool_call_parser: type[ToolCallParser] | None = None  # how they look; there where calls_tools
    finishes_as_stop: bool = False  # also with calls: OpenAI's reason where the client named the tool


def parse_completion(body: Mapping[str, Any], tenant: str, limits: Limits) -> Asked:
    """Raises RequestError naming the field at fault."""
    fields = Fields(body)
    fields.accept_only(known_fields.COMPLETIONS)
    adds_special_tokens = fields.boolean("add_special_tokens", True)
    prompts = _prompts(fields.raw("prompt"), adds_special_tokens, limits)
    logprobs, echo = fields.integer("logprobs"), fields.boolean("echo")
    if echo and logprobs is not None:
        raise RequestError("echo with logprobs is not supported: prompts have no log-probabilities", field="echo")
    return replace(_asked(fields, prompts, "prompt", logprobs, COMPLETIONS_MAX_TOKENS, tenant), echo=echo)


def parse_chat(body: Mapping[str, Any], tenant: str, limits: Limits) -> Asked:
    """Raises RequestError naming the field at fault."""
    fields = Fields(body)
    fields.accept_only(known_fields.CHAT)
    tools, parallel = parse_tools(fields), fields.boolean("parallel_tool_calls", True)
    choice = parse_tool_choice(fields.raw("tool_choice"), tools)
    conversation = parse_conversation(fields, limits, choice.tools)
    top = fields.integer("top_logprobs")
    wanted = fields.boolean("logprobs")
    if top is not None and not 0 <= top <= limits.max_logprobs:
        raise BadSampling(f"top_logprobs is {top:,}, allowed 0 to {limits.max_logprobs}", field="top_logprobs")
    if top and not wanted:
        raise BadSampling("top_logprobs needs logprobs to be true", field="top_logprobs")
    logprobs = (top or 0) if wanted else None
    asked = _asked(fields, (conversation,), "messages", logprobs, None, tenant)
    max_calls = 1 if choice.is_named or not parallel else None
    asked = replace(asked, calls_tools=bool(choice.tools), max_tool_calls=max_calls)
    return _calling(asked, choice) if choice.must_call else asked


def _calling(asked: Asked, choice: ToolChoice) -> Asked:
    """The answer has to be calls: a constraint sees to it, and no format of the model's is needed."""
    sampling = asked.draft.sampling
    if sampling.constraint is not None:
        raise RequestError(f"{sampling.constraint_field} and tool_choice are both there; give one", field="tool_choice")
    sampling = replace(sampling, constraint=calls_only(choice.tools, asked.max_tool_calls), constraint_field="tools")
    return replace(
        asked,
        draft=replace(asked.draft, sampling=sampling),
        tool_call_parser=ForcedCallsParser,
        finishes_as_stop=choice.is_named,
    )


def _asked(
    fields: Fields,
    prompts: tuple[Prompt, ...],
    prompt_field: str,
    logprobs: int | None,
    max_tokens: int | None,
    tenant: str,
) -> Asked:
    """What both endpoints share; reads the last fields, so that what is left is unknown."""
    num_choices = fields.integer("n")
    num_choices = 1 if num_choices is None else num_choices
    best_of = fields.integer("best_of")
    if best_of is not None and best_of != num_choices:
        raise RequestError("best_of is not supported unless it equals n", field="best_of")
    stream = fields.boolean("stream")
    include_usage, continuous_usage = _stream_options(fields, stream)
    draft = RequestDraft(
        prompts=prompts,
        sampling=_sampling(fields, logprobs),
        default_temperature=1.0,
        default_max_tokens=max_tokens,
        use_generation_config=True,
        prompt_field=prompt_field,
        request_id=fields.string("request_id") or "",
        model=fields.string("model") or "",
        num_choices=num_choices,
        slo=_slo(fields),
        priority=fields.integer("priority") or 0,
        tenant=tenant,
        output=_output(fields),
        keep_prompt_tokens=fields.integer("truncate_prompt_tokens"),
    )
    asked = Asked(
        draft, stream, include_usage, continuous_usage, fields.boolean("return_token_ids"),
        fields.boolean("return_timing"), fields.boolean("return_tokens_as_token_ids"),
    )  # fmt: skip
    fields.refuse_unknown()
    return asked


def _sampling(fields: Fields, logprobs: int | None) -> SamplingDraft:
    max_tokens, newer = fields.integer("max_tokens"), fields.integer("max_completion_tokens")
    if max_tokens is not None and newer is not None and max_tokens != newer:
        raise BadSampling("max_tokens and max_completion_tokens differ; give one", field="max_completion_tokens")
    constraint, constraint_field = parse_constraint(fields)
    return SamplingDraft(
        temperature=fields.number("temperature"),
        top_p=fields.number("top_p"),
        top_k=fields.integer("top_k"),
        min_p=fields.number("min_p"),
        repetition_penalty=fields.number("repetition_penalty"),
        presence_penalty=fields.number("presence_penalty"),
        frequency_penalty=fields.number("frequency_penalty"),
        seed=fields.integer("seed"),
        logit_bias=_logit_bias(fields),
        max_tokens=max_tokens if newer is None else newer,
        min_tokens=fields.integer("min_tokens"),
        stop=fields.strings("stop"),
        stop_token_ids=fields.integers("stop_token_ids"),
        ignore_eos=fields.boolean("ignore_eos"),
        logprobs=logprobs,
        constraint=constraint,
        constraint_field=constraint_field,
    )


def _output(fields: Fields) -> OutputDraft:
    fields.boolean("spaces_between_special_tokens")  # tokenizers of the fast kind write none either way
    return OutputDraft(fields.boolean("skip_special_tokens", True), fields.boolean("include_stop_str_in_output"))


def _logit_bias(fields: Fields) -> tuple[tuple[int, float], ...]:
    bias = fields.nested("logit_bias")
    if bias is None:
        return ()
    entries = []
    for key in bias.names():
        if not key.isdecimal() or not key.isascii() or len(key) > 19:
            raise BadSampling(f"logit_bias has a key that is no token id: {key[:32]!a}", field="logit_bias")
        value = bias.number(key)
        if value is None:
            wrong_type(bias.path_of(key), "a number", None)
        entries.append((int(key), value))
    return tuple(entries)


def _stream_options(fields: Fields, stream: bool) -> tuple[bool, bool]:
    options = fields.nested("stream_options")
    if options is None:
        return False, False
    if not stream:
        raise RequestError("stream_options needs stream to be true", field="stream_options")
    options.accept_only({"include_obfuscation": lambda value: value is False})
    chosen = options.boolean("include_usage"), options.boolean("continuous_usage_stats")
    options.refuse_unknown()
    return chosen


def _slo(fields: Fields) -> SloDraft:
    slo = fields.nested("slo")
    if slo is None:
        return SloDraft()
    draft = SloDraft(slo.string("class") or "", slo.number("ttft_s"), slo.number("tpot_s"))
    slo.refuse_unknown()
    return draft


def _prompts(value: Any, adds_special_tokens: bool, limits: Limits) -> tuple[Prompt, ...]:
    """Text, token ids, or a list of either."""
    if value is None:
        return ()
    if isinstance(value, str):
        return (PromptText(value, adds_special_tokens),)
    items = value if isinstance(value, list) else wrong_type("prompt", "text or a list", value)
    if not items:
        raise RequestError("prompt is an empty list", field="prompt")
    if not isinstance(items[0], (str, list)):
        if len(items) > limits.max_prompt_tokens:  # before a million items are looked at
            raise PromptTooLong(f"prompt has {len(items):,} tokens, limit {limits.max_prompt_tokens:,}", field="prompt")
        return (PromptTokens(as_integers(items, "prompt")),)
    if len(items) > limits.max_prompts:
        raise RequestError(f"prompt has {len(items):,} prompts, limit {limits.max_prompts}", field="prompt")
    return tuple(
        PromptText(item, adds_special_tokens)
        if isinstance(item, str)
        else PromptTokens(as_integers(item, f"prompt[{n}]"))
        for n, item in enumerate(items)
    )
