"""What the text of an answer must be: OpenAI's `response_format`, vLLM's `structured_outputs` and its older names."""

from __future__ import annotations

import json
from typing import Any

from pdserve.errors import RequestError
from pdserve.sampling import Constraint, ConstraintKind, choice_of
from router.http_front.fields import Fields, as_object, wrong_type

NONE: tuple[Constraint | None, str] = (None, "")
_OLD_NAMES = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}
_KINDS = ("json", "regex", "choice", "grammar", "json_object")
_HARMLESS = {
    "disable_fallback": lambda value: isinstance(value, bool),  # there is no other backend
    "disable_any_whitespace": lambda value: value is False,
    "disable_additional_properties": lambda value: value is False,
    "whitespace_pattern": lambda value: False,
    "structural_tag": lambda value: False,
}


def parse_constraint(fields: Fields) -> tuple[Constraint | None, str]:
    """The constraint and the field that it stands in. Raises RequestError; one request has one at most."""
    found = [_response_format(fields), _structured_outputs(fields)]
    found += [_of_kind(fields, name, kind) for name, kind in _OLD_NAMES.items()]
    given = [(constraint, field) for constraint, field in found if constraint is not None]
    if len(given) > 1:
        names = " and ".join(field for _, field in given)
        raise RequestError(f"{names} are both there; give one", field=given[1][1])
    return given[0] if given else NONE


def _response_format(fields: Fields) -> tuple[Constraint | None, str]:
    asked = fields.nested("response_format")
    if asked is None:
        return NONE
    kind, field = asked.string("type"), asked.path_of("type")
    schema = asked.nested("json_schema")
    asked.refuse_unknown()
    if kind not in ("text", "json_object", "json_schema"):
        raise RequestError(f"{field} must be text, json_object or json_schema", field=field)
    if (kind == "json_schema") != (schema is not None):
        path = asked.path_of("json_schema")
        raise RequestError(f"{path} goes with the type json_schema, and that with it", field=path)
    if schema is None:
        return NONE if kind == "text" else (Constraint(ConstraintKind.JSON_OBJECT), field)
    schema.string("name")
    schema.string("description")
    schema.boolean("strict")  # a schema is always obeyed
    path = schema.path_of("schema")
    body = schema.raw("schema")
    schema.refuse_unknown()
    return (Constraint(ConstraintKind.JSON_OBJECT) if body is None else _schema(body, path)), path


def _structured_outputs(fields: Fields) -> tuple[Constraint | None, str]:
    asked = fields.nested("structured_outputs")
    if asked is None:
        return NONE
    asked.accept_only(_HARMLESS)
    found = [_of_kind(asked, kind, kind) for kind in _KINDS]
    asked.refuse_unknown()
    given = [(constraint, field) for constraint, field in found if constraint is not None]
    if asked.names() and len(given) != 1:
        path = asked.path_of("")[:-1]
        raise RequestError(f"{path} must have exactly one of {', '.join(_KINDS)}", field=path)
    return given[0] if given else NONE


def _of_kind(fields: Fields, name: str, kind: str) -> tuple[Constraint | None, str]:
    path = fields.path_of(name)
    if fields.raw(name) is None:
        return NONE
    match kind:
        case "json":
            return _schema(fields.raw(name), path), path
        case "choice":
            return choice_of(fields.strings(name)), path
        case "json_object":
            return (Constraint(ConstraintKind.JSON_OBJECT) if fields.boolean(name) else None), path
    return Constraint(ConstraintKind(kind), fields.string(name) or ""), path


def _schema(value: Any, path: str) -> Constraint:
    """An object, or its JSON as a string; the order of its properties is the order of the output's."""
    if isinstance(value, str):
        return Constraint(ConstraintKind.JSON_SCHEMA, value)
    if not isinstance(value, dict):
        wrong_type(path, "an object", value)
    try:
        text = json.dumps(as_object(value, path), ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        raise RequestError(f"{path} is nested too deep", field=path) from None
    return Constraint(ConstraintKind.JSON_SCHEMA, text)
