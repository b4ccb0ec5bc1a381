"""Which tools an answer may, must or must not call: OpenAI's `tool_choice`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pdserve.errors import RequestError
from pdserve.sampling import Constraint, ConstraintKind
from router.http_front.fields import Fields, as_object

Tool = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """What was chosen."""

    tools: tuple[Tool, ...]  # that the model is told of
    must_call: bool = False  # the answer is calls and nothing else
    is_named: bool = False  # of one tool that the client chose


def parse_tool_choice(value: Any, tools: tuple[Tool, ...]) -> ToolChoice:
    """Raises RequestError naming what is wrong; without a choice the model has it."""
    if value is None or value == "auto":
        return ToolChoice(tools)
    if value == "none":
        return ToolChoice(())
    if not tools:
        raise RequestError("tool_choice needs tools", field="tool_choice")
    if value == "required":
        return ToolChoice(tools, must_call=True)
    if isinstance(value, str):
        raise RequestError("tool_choice must be none, auto, required or a function of the tools", field="tool_choice")
    name = _named(value)
    chosen = tuple(tool for tool in tools if tool["function"]["name"] == name)
    if not chosen:
        raise RequestError("tool_choice.function.name is none of the tools", field="tool_choice.function.name")
    return ToolChoice(chosen[:1], must_call=True, is_named=True)


def _named(value: Any) -> str:
    fields = Fields(as_object(value, "tool_choice"), "tool_choice")
    if fields.string("type") != "function":
        raise RequestError("tool_choice.type must be function", field="tool_choice.type")
    function = fields.nested("function")
    fields.refuse_unknown()
    name = None if function is None else function.string("name")
    if function is None or name is None:
        raise RequestError("tool_choice.function.name is missing", field="tool_choice.function.name")
    function.refuse_unknown()
    return name


def calls_only(tools: Sequence[Tool], max_calls: int | None) -> Constraint:
    """The answer is a list of calls, each with the arguments that its tool takes; `ForcedCallsParser` reads it."""
    shared: dict[str, Any] = {}
    calls = [_call_of(tool["function"], shared) for tool in tools]
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
    if max_calls is not None:
        schema["maxItems"] = max_calls
    if shared:
        schema["$defs"] = shared
    return Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(schema, ensure_ascii=False, separators=(",", ":")))


def _call_of(function: Mapping[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    """Definitions move to the top of the whole schema, where references look for them."""
    parameters = dict(function.get("parameters") or {"type": "object"})
    if parameters.setdefault("type", "object") != "object":
        raise RequestError("the parameters of a tool that is forced must have the type object", field="tools")
    definitions = parameters.pop("$defs", {})
    if not isinstance(definitions, dict):
        raise RequestError("$defs of a tool's parameters must be an object", field="tools")
    if any(shared.get(name, one) != one for name, one in definitions.items()):
        raise RequestError("two tools have other $defs under one name; a forced choice needs them apart", field="tools")
    shared |= definitions
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "parameters": parameters},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }
