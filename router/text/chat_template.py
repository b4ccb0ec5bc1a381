"""A chat template rendered as transformers renders it, without importing transformers (seconds)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

_SAFE_JINJA = (3, 1, 6)  # older ones have ways out of the sandbox
_SPECIAL = re.compile(r"\{%[-+]?\s*(generation|set\s+_)|__")


def renders_alike(template: str) -> bool:
    """Whether it is one of the nearly all templates that need nothing of transformers' own.

    Left to transformers: marks of generated text, and names that its sandbox watches beyond jinja's own.
    """
    numbers = tuple(int(part) for part in re.findall(r"\d+", version("jinja2"))[:3])
    return numbers >= _SAFE_JINJA and _SPECIAL.search(template) is None


class ChatTemplate:
    """One template, compiled. Errors: `jinja2.TemplateError`, when compiled and when rendered."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        self._template = environment.from_string(source)
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        arguments: Mapping[str, Any],
    ) -> str:
        """The conversation as text; `arguments` are the template's own."""
        return self._template.render(
            messages=[dict(message) for message in messages],
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **(self._special_tokens | dict(arguments)),
        )


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
