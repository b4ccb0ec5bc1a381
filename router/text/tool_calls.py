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
    """Over one choice: push() every piece of its text, then flush() once. Both cost what the text is long, once."""

    needs_special_tokens = False  # its marks are special tokens, which are otherwise not shown

    def __init__(self) -> None:
        self._held: list[str] = []  # in pieces: joined once

    @abstractmethod
    def push(self, text: str) -> list[Piece]: ...

    @abstractmethod
    def flush(self) -> list[Piece]: ...


def _open_tail(text: str, mark: str) -> int:
    """Length of the longest tail of the text that the mark begins with."""
    return next(n for n in range(min(len(mark) - 1, len(text)), -1, -1) if text.endswith(mark[:n]))


class HermesParser(ToolCallParser):
    """Calls between tags, text around them. Held: what came of a call whose opening tag did."""

    OPEN, CLOSE = "<tool_call>", "</tool_call>"

    def __init__(self) -> None:
        super().__init__()
        self._mark = self.OPEN  # the tag that would come next
        self._tail = ""  # perhaps its beginning
        self._has_called = False

    def push(self, text: str) -> list[Piece]:
        text, start = self._tail + text, 0
        pieces: list[Piece] = []
        while (end := text.find(self._mark, start)) >= 0:
            self._part(pieces, text[start:end])
            start = end + len(self._mark)
            if self._mark == self.CLOSE:
                self._call(pieces, self.CLOSE)
            self._mark = self.CLOSE if self._mark == self.OPEN else self.OPEN
        text = text[start:]
        end = len(text) - _open_tail(text, self._mark)
        self._part(pieces, text[:end])
        self._tail = text[end:]
        return pieces

    def flush(self) -> list[Piece]:
        """A call whose closing tag never came counts when it is complete without."""
        pieces: list[Piece] = []
        self._part(pieces, self._tail)
        if self._mark == self.CLOSE:
            self._call(pieces, "")
        return pieces

    def _part(self, pieces: list[Piece], text: str) -> None:
        """Of a call, or said; white space between calls and after them says nothing."""
        if self._mark == self.CLOSE:
            self._held.append(text)
        elif text and not (self._has_called and text.isspace()):
            pieces.append(text)

    def _call(self, pieces: list[Piece], close: str) -> None:
        inside = "".join(self._held)
        self._held.clear()
        call = _called(_json(inside))
        self._has_called = self._has_called or call is not None
        pieces.append(self.OPEN + inside + close if call is None else call)


class LlamaJsonParser(ToolCallParser):
    """An answer that begins like JSON is held back to its end."""

    _BETWEEN = re.compile(r"[; \n\t]*")

    def __init__(self) -> None:
        super().__init__()
        self._begin = ""  # its first character that is not white space

    def push(self, text: str) -> list[Piece]:
        self._begin = self._begin or text.lstrip()[:1]
        self._held.append(text)
        if self._begin in ("", "{"):
            return []
        text = "".join(self._held)
        self._held.clear()
        return [text] if text else []

    def flush(self) -> list[Piece]:
        calls: list[Piece] = []
        held, at = "".join(self._held), 0
        rest = held.strip()
        while at < len(rest):
            try:
                value, at = json.JSONDecoder().raw_decode(rest, at)
            except (ValueError, RecursionError):
                return [held]
            call = _called(value)
            if call is None:
                return [held]
            calls.append(call)
            between = self._BETWEEN.match(rest, at)
            assert between is not None
            at = between.end()
        return calls


class MistralParser(ToolCallParser):
    """Everything behind the first mark is calls."""

    MARK = "[TOOL_CALLS]"
    needs_special_tokens = True
    _NAMED = re.compile(r"\s*([^\s{\[]+)\s*(?:\[CALL_ID\]\s*(\w+)\s*)?(?:\[ARGS\])?\s*(\{.*)", re.DOTALL)

    def __init__(self) -> None:
        super().__init__()
        self._tail = ""  # perhaps the mark's beginning; the mark itself when it came

    def push(self, text: str) -> list[Piece]:
        if self._tail == self.MARK:
            self._held.append(text)
            return []
        text = self._tail + text
        said, self._tail, behind = text.partition(self.MARK)
        if not self._tail:
            end = len(text) - _open_tail(text, self.MARK)
            said, self._tail = text[:end], text[end:]
        self._held.append(behind)
        return [said] if said else []

    def flush(self) -> list[Piece]:
        if self._tail != self.MARK:
            return [self._tail] if self._tail else []
        behind = "".join(self._held)
        listed = _json(behind)
        if isinstance(listed, list):
            calls = [_called(item, _short_id()) for item in listed]
        else:
            calls = [self._named(part) for part in behind.split(self.MARK)]
        found: list[Piece] = [call for call in calls if call is not None]
        return found if calls and len(found) == len(calls) else [self.MARK + behind]

    def _named(self, part: str) -> CalledTool | None:
        match = self._NAMED.fullmatch(part)
        if match is None:
            return None
        return _called({"name": match[1], "arguments": _json(match[3])}, match[2] or _short_id())


class ForcedCallsParser(ToolCallParser):
    """For an answer that a constraint makes a list of calls: it is one unless it was cut."""

    def push(self, text: str) -> list[Piece]:
        self._held.append(text)
        return []

    def flush(self) -> list[Piece]:
        held = "".join(self._held)
        listed = _json(held)
        calls = [_called(item) for item in listed] if isinstance(listed, list) else [None]
        found: list[Piece] = [call for call in calls if call is not None]
        return found if len(found) == len(calls) else [held]


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
