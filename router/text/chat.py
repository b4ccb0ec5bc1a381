"""Conversations, and the checkpoint's template over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jinja2

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
"""Roles that a message may have; templates build special tokens from them, so the set is closed."""
CONTINUE_TAG = "\ue004continue\ue005 "
"""Stands for the end of a message that is to be continued; its space shows whether the template trims."""


class ChatTemplateError(ValueError):
    """There is no template, or it refuses the messages."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that the assistant made."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str  # one of ROLES
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()  # of the assistant
    tool_call_id: str | None = None  # of a tool: which call this answers

    def texts(self) -> tuple[str, ...]:
        """Everything here that a client wrote freely."""
        return tuple(_strings_of([*self._plain().values()]))

    def map_texts(self, change: Callable[[str], str]) -> ChatMessage:
        calls = tuple(
            ToolCall(change(call.id), change(call.name), _map_strings(call.arguments, change))
            for call in self.tool_calls
        )
        name, answers = (None if text is None else change(text) for text in (self.name, self.tool_call_id))
        return ChatMessage(self.role, change(self.content), name, calls, answers)

    def as_dict(self) -> dict[str, Any]:
        """As templates expect it."""
        plain = self._plain()
        if self.tool_calls:
            plain["tool_calls"] = [{"type": "function", **call} for call in plain["tool_calls"]]
        return {"role": self.role, **plain}

    def _plain(self) -> dict[str, Any]:
        plain: dict[str, Any] = {"content": self.content}
        if self.name is not None:
            plain["name"] = self.name
        if self.tool_calls:
            plain["tool_calls"] = [
                {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        if self.tool_call_id is not None:
            plain["tool_call_id"] = self.tool_call_id
        return plain


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How a conversation becomes a prompt, beyond its messages."""

    tools: tuple[Mapping[str, Any], ...] = ()  # what the assistant may call, as OpenAI describes it
    template_arguments: Mapping[str, Any] = field(default_factory=dict)  # the template's own switches
    add_generation_prompt: bool = True  # end where the assistant answers
    continue_final_message: bool = False  # end inside the last message
    add_special_tokens: bool = False  # BOS before what the template wrote

    def texts(self) -> tuple[str, ...]:
        """Everything here that a client wrote freely."""
        return tuple(_strings_of([*self.tools, self.template_arguments]))

    def map_texts(self, change: Callable[[str], str]) -> ChatOptions:
        tools = tuple(_map_strings(tool, change) for tool in self.tools)
        return replace(self, tools=tools, template_arguments=_map_strings(self.template_arguments, change))


def _strings_of(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys too but for those that are ours."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings_of(item)
    elif isinstance(value, Mapping):
        yield from value
        for item in value.values():
            yield from _strings_of(item)


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_strings(item, change) for item in value]
    if isinstance(value, Mapping):
        return {change(key): _map_strings(item, change) for key, item in value.items()}
    return value


def render_chat(hf_tokenizer: Any, messages: Sequence[ChatMessage], options: ChatOptions) -> str:
    """The conversation as text. Raises ChatTemplateError."""
    turns = [message.as_dict() for message in messages]
    if options.continue_final_message:
        turns[-1]["content"] += CONTINUE_TAG
    try:
        rendered: str = hf_tokenizer.apply_chat_template(
            turns,
            tools=[dict(tool) for tool in options.tools] or None,
            tokenize=False,
            add_generation_prompt=options.add_generation_prompt,
            **options.template_arguments,
        )
    except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Templates speak to clients through raise_exception: "roles must alternate", ...
        raise ChatTemplateError(f"the chat template refuses the messages: {str(error)[:200]}") from error
    return _cut_at_tag(rendered) if options.continue_final_message else rendered


def _cut_at_tag(rendered: str) -> str:
    """What stands before the tag; where the template trims contents, the end of this one is trimmed as well."""
    head, tag, tail = rendered.rpartition(CONTINUE_TAG.strip())
    if not tag:
        raise ChatTemplateError("the chat template does not show the last message, so it cannot be continued")
    return head if tail.startswith(" ") else head.rstrip()
