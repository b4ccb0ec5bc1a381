"""What a chat body says of the conversation: its messages, the tools, the template's switches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pdserve.errors import RequestError
from router.http_front import known_fields
from router.http_front.fields import Fields, as_list, as_object, as_string, wrong_type
from router.limits import Limits
from router.text import ROLES, ChatMessage, ChatOptions, ToolCall
from router.validation import PromptChat

MAX_NESTING = 64
"""Of a tool's schema and of a template's switches."""
RESERVED_SWITCHES = frozenset(
    {"messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize"}
    | {"continue_final_message", "padding", "truncation", "max_length", "tokenizer_kwargs", "raise_exception"}
)


def parse_conversation(fields: Fields, limits: Limits, tools: tuple[Mapping[str, Any], ...] = ()) -> PromptChat:
    """Raises RequestError naming the field at fault."""
    messages = _messages(fields.raw("messages"), limits)
    generate = fields.boolean("add_generation_prompt", True)
    carry_on = fields.boolean("continue_final_message")
    if carry_on and generate:
        raise RequestError(
            "continue_final_message needs add_generation_prompt to be false", field="continue_final_message"
        )
    options = ChatOptions(
        tools=tools,
        template_arguments=_switches(fields),
        add_generation_prompt=generate,
        continue_final_message=carry_on,
        add_special_tokens=fields.boolean("add_special_tokens"),
    )
    return PromptChat(messages, options)


def parse_tools(fields: Fields) -> tuple[Mapping[str, Any], ...]:
    """The tools, each as the template will see it."""
    value = fields.raw("tools")
    return () if value is None else tuple(_tool(item, f"tools[{n}]") for n, item in enumerate(as_list(value, "tools")))


def _tool(item: Any, path: str) -> Mapping[str, Any]:
    tool = as_object(item, path)
    fields = Fields(tool, path)
    if fields.string("type") != "function":
        raise RequestError(f"{path}.type must be function", field=f"{path}.type")
    function = fields.nested("function")
    if function is None:
        raise RequestError(f"{path}.function is missing", field=f"{path}.function")
    fields.refuse_unknown()
    if not function.string("name"):
        raise RequestError(f"{path}.function.name is missing", field=f"{path}.function.name")
    function.string("description")
    function.nested("parameters")
    function.boolean("strict")
    function.refuse_unknown()
    _check_nesting(tool, path)
    return tool


def _switches(fields: Fields) -> Mapping[str, Any]:
    value = fields.raw("chat_template_kwargs")
    if value is None:
        return {}
    switches = as_object(value, "chat_template_kwargs")
    for name in switches:
        path = f"chat_template_kwargs.{ascii(name[:64])[1:-1]}"
        if name in RESERVED_SWITCHES or name.startswith(("return_", "_")) or name.endswith("_token"):
            raise RequestError(f"{path} is not the template's own to set", field=path)
    _check_nesting(switches, "chat_template_kwargs")
    return switches


def _check_nesting(value: Any, path: str, left: int = MAX_NESTING) -> None:
    if left == 0:
        raise RequestError(f"{path} is nested deeper than {MAX_NESTING}", field=path)
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inside:
        _check_nesting(item, path, left - 1)


def _messages(value: Any, limits: Limits) -> tuple[ChatMessage, ...]:
    if value is None:
        raise RequestError("messages is missing", field="messages")
    items = as_list(value, "messages")
    if not 1 <= len(items) <= limits.max_messages:
        raise RequestError(
            f"messages has {len(items):,} messages, allowed 1 to {limits.max_messages:,}", field="messages"
        )
    return tuple(_message(item, f"messages[{n}]") for n, item in enumerate(items))


def _message(item: Any, path: str) -> ChatMessage:
    fields = Fields(as_object(item, path), path)
    fields.accept_only(known_fields.MESSAGE)
    role = fields.string("role")
    if role not in ROLES:
        raise RequestError(f"{path}.role must be one of {', '.join(ROLES)}", field=f"{path}.role")
    calls = _tool_calls(fields.raw("tool_calls"), f"{path}.tool_calls")
    if calls and role != "assistant":
        raise RequestError(f"{path}.tool_calls: only the assistant calls tools", field=f"{path}.tool_calls")
    answers = fields.string("tool_call_id")
    if answers is not None and role != "tool":
        raise RequestError(f"{path}.tool_call_id: only role tool answers a call", field=f"{path}.tool_call_id")
    content = _content(fields.raw("content"), f"{path}.content", may_be_missing=bool(calls))
    message = ChatMessage(role, content, fields.string("name"), calls, answers)
    fields.refuse_unknown()
    return message


def _tool_calls(value: Any, path: str) -> tuple[ToolCall, ...]:
    if value is None:
        return ()
    return tuple(_tool_call(item, f"{path}[{n}]") for n, item in enumerate(as_list(value, path)))


def _tool_call(item: Any, path: str) -> ToolCall:
    fields = Fields(as_object(item, path), path)
    if fields.string("type") not in (None, "function"):
        raise RequestError(f"{path}.type must be function", field=f"{path}.type")
    function = fields.nested("function")
    if function is None:
        raise RequestError(f"{path}.function is missing", field=f"{path}.function")
    fields.raw("index")  # of a streamed delta that a client sends back as it came
    call = ToolCall(
        fields.string("id") or "",
        as_string(function.raw("name"), f"{path}.function.name"),
        _arguments(function.raw("arguments"), f"{path}.function.arguments"),
    )
    fields.refuse_unknown()
    function.refuse_unknown()
    return call


def _arguments(value: Any, path: str) -> Mapping[str, Any]:
    """JSON in a string, as OpenAI has it; templates expect the object."""
    if value is None or value == "":
        return {}
    try:
        arguments = json.loads(as_string(value, path))
    except (ValueError, RecursionError):
        raise RequestError(f"{path} is not JSON", field=path) from None
    _check_nesting(arguments, path)
    return as_object(arguments, path)


def _content(value: Any, path: str, *, may_be_missing: bool) -> str:
    """Text, or parts that are all text, one per line (as vLLM joins them)."""
    if isinstance(value, str):
        return value
    if value is None:
        if may_be_missing:
            return ""
        raise RequestError(f"{path} is missing", field=path)
    if not isinstance(value, list):
        wrong_type(path, "a string or a list of parts", value)
    texts = []
    for n, item in enumerate(value):
        part = Fields(as_object(item, f"{path}[{n}]"), f"{path}[{n}]")
        if part.string("type") != "text":
            raise RequestError(f"{path}[{n}].type: only text is supported", field=f"{path}[{n}].type")
        texts.append(as_string(part.raw("text"), f"{path}[{n}].text"))
        part.refuse_unknown()
    return "\n".join(texts)
