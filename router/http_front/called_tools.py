"""Calls of tools in an answer, as OpenAI shows them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pdserve.errors import RequestError
from router.http_front.parsing import Asked
from router.text import TOOL_CALL_PARSERS, CalledTool


@dataclass(frozen=True, slots=True)
class Said:
    """What a piece of an answer came to."""

    text: str
    calls: list[dict[str, Any]]


class CalledTools:
    """Of one choice."""

    def __init__(self, asked: Asked) -> None:
        assert asked.tool_call_parser is not None
        self._parser = asked.tool_call_parser()
        self._max_calls = asked.max_tool_calls
        self.num_calls = 0

    def push(self, text: str, *, is_last: bool) -> Said:
        pieces = self._parser.push(text)
        if is_last:
            pieces += self._parser.flush()
        calls = [self._shown(piece) for piece in pieces if isinstance(piece, CalledTool) and self._counts()]
        return Said("".join(piece for piece in pieces if isinstance(piece, str)), calls)

    def _counts(self) -> bool:
        """Whether one more call is wanted."""
        return self._max_calls is None or self.num_calls < self._max_calls

    def _shown(self, call: CalledTool) -> dict[str, Any]:
        self.num_calls += 1
        function = {"name": call.name, "arguments": call.arguments}
        return {"index": self.num_calls - 1, "id": call.id, "type": "function", "function": function}


def with_parser(asked: Asked, parser: str | None) -> Asked:
    """The request with the server's parser, when it brings tools. Raises RequestError: the server has none."""
    if not asked.calls_tools or asked.tool_call_parser is not None:
        return asked
    if parser is None:
        allowed = ", ".join(TOOL_CALL_PARSERS)
        raise RequestError(
            f"tools need a server started with --tool-call-parser ({allowed}), or tool_choice required", field="tools"
        )
    draft, kind = asked.draft, TOOL_CALL_PARSERS[parser]
    if kind.needs_special_tokens:
        draft = replace(draft, output=replace(draft.output, skip_special_tokens=False))
    return replace(asked, draft=draft, tool_call_parser=kind)
