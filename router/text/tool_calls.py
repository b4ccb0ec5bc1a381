"""Calls of tools, found in the text of an answer; the formats and their names are those of vLLM's parsers.

    hermes       <tool_call>{"name": .., "arguments": {..}}</tool_call>, as often as there are calls   (Hermes, Qwen)
    llama3_json  the whole answer is {"name": .., "parameters": {..}}, several with ; between           (Llama 3)
    mistral      [TOOL_CALLS][{"name": .., "arguments": {..}}, ..] or [TOOL_CALLS]name{..}, repeated    (Mistral)

A call comes out whole, once it is complete; the text around calls comes as it is made. What looks like a call and is
none comes out as the text that it is.
"""

from __future__ import annotations

import json
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class CalledTool:
    """One call."""

    id: str
    name: str
    arguments: str  # a JSON object


Piece = str | CalledTool


class ToolCallParser(ABC):
    """Over one choice: push() every piece of its text, then flush() once."""

    needs_special_tokens = False  # its marks are special tokens, which are otherwise not shown

    def __init__(self) -> None:
        self._held = ""

    @abstractmethod
    def push(self, text: str) -> list[Piece]: ...

    @abstractmethod
    def flush(self) -> list[Piece]: ...

    def _until(self, mark: str) -> str:
        """What is held and surely stands before the mark; it is held no more."""
        start = self._held.find(mark)
        if start < 0:
            start = len(self._held) - _open_tail(self._held, mark)
        text, self._held = self._held[:start], self._held[start:]
        return text


def _open_tail(text: str, mark: str) -> int:
    """Length of the longest tail of the text that the mark begins with."""
    return next(n for n in range(min(len(mark) - 1, len(text)), -1, -1) if text.endswith(mark[:n]))


class HermesParser(ToolCallParser):
    """Calls between tags, text around them."""

    OPEN, CLOSE = "<tool_call>", "</tool_call>"

    def __init__(self) -> None:
        super().__init__()
        self._has_called = False

    def push(self, text: str) -> list[Piece]:
        self._held += text
        pieces: list[Piece] = []
        while True:
            self._say(pieces, self._until(self.OPEN))
            if not self._held.startswith(self.OPEN):
                return pieces
            end = self._held.find(self.CLOSE)
            if end < 0:
                return pieces
            self._call(pieces, self._held[len(self.OPEN) : end], self._held[: end + len(self.CLOSE)])
            self._held = self._held[end + len(self.CLOSE) :]

    def flush(self) -> list[Piece]:
        """A call whose closing tag never came counts when it is complete without."""
        pieces: list[Piece] = []
        held, self._held = self._held, ""
        if held.startswith(self.OPEN):
            self._call(pieces, held[len(self.OPEN) :], held)
        else:
            self._say(pieces, held)
        return pieces

    def _call(self, pieces: list[Piece], inside: str, raw: str) -> None:
        call = _called(_json(inside))
        self._has_called = self._has_called or call is not None
        pieces.append(raw if call is None else call)

    def _say(self, pieces: list[Piece], text: str) -> None:
        """White space between calls and after them says nothing."""
        if text and not (self._has_called and text.isspace()):
            pieces.append(text)


class LlamaJsonParser(ToolCallParser):
    """An answer that begins like JSON is held back to its end."""

    def __init__(self) -> None:
        super().__init__()
        self._is_text = False

    def push(self, text: str) -> list[Piece]:
        self._held += text
        begin = self._held.lstrip()[:1]
        self._is_text = self._is_text or begin not in ("", "{")
        if not self._is_text:
            return []
        text, self._held = self._held, ""
        return [text] if text else []

    def flush(self) -> list[Piece]:
        calls: list[Piece] = []
        rest = self._held.strip()
        while rest:
            try:
                value, end = json.JSONDecoder().raw_decode(rest)
            except (ValueError, RecursionError):
                return [self._held]
            call = _called(value)
            if call is None:
                return [self._held]
            calls.append(call)
            rest = rest[end:].lstrip("; \n\t")
        return calls


class MistralParser(ToolCallParser):
    """Everything behind the first mark is calls."""

    MARK = "[TOOL_CALLS]"
    needs_special_tokens = True
    _NAMED = re.compile(r"\s*([^\s{\[]+)\s*(?:\[CALL_ID\]\s*(\w+)\s*)?(?:\[ARGS\])?\s*(\{.*)", re.DOTALL)

    def push(self, text: str) -> list[Piece]:
        self._held += text
        said = self._until(self.MARK)
        return [said] if said else []

    def flush(self) -> list[Piece]:
        if not self._held.startswith(self.MARK):
            return [self._held] if self._held else []
        behind = self._held[len(self.MARK) :]
        listed = _json(behind)
        if isinstance(listed, list):
            calls = [_called(item, _short_id()) for item in listed]
        else:
            calls = [self._named(part) for part in behind.split(self.MARK)]
        found: list[Piece] = [call for call in calls if call is not None]
        return found if calls and len(found) == len(calls) else [self._held]

    def _named(self, part: str) -> CalledTool | None:
        match = self._NAMED.fullmatch(part)
        if match is None:
            return None
        return _called({"name": match[1], "arguments": _json(match[3])}, match[2] or _short_id())


class ForcedCallsParser(ToolCallParser):
    """For an answer that a constraint makes a list of calls: it is one unless it was cut."""

    def push(self, text: str) -> list[Piece]:
        self._held += text
        return []

    def flush(self) -> list[Piece]:
        listed = _json(self._held)
        calls = [_called(item) for item in listed] if isinstance(listed, list) else [None]
        found: list[Piece] = [call for call in calls if call is not None]
        return found if len(found) == len(calls) else [self._held]


def _short_id() -> str:
    """Mistral's templates take ids of nine letters and digits only."""
    return secrets.token_hex(5)[:9]


def _json(text: str) -> Any:
    """None for what is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _called(value: Any, call_id: str = "") -> CalledTool | None:
    """The call that a parsed object stands for; None: it is none."""
    if not isinstance(value, dict):
        return None
    name = value.get("name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _json(arguments)
    if not (isinstance(name, str) and name and isinstance(arguments, dict)):
        return None
    return CalledTool(call_id or f"call_{secrets.token_hex(12)}", name, json.dumps(arguments, ensure_ascii=False))


TOOL_CALL_PARSERS: Mapping[str, type[ToolCallParser]] = {
    "hermes": HermesParser,
    "llama3_json": LlamaJsonParser,
    "mistral": MistralParser,
}
