"""Reader of ShareGPT-style files: one JSON array of conversations, or one conversation a line."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from placement.workload.errors import WorkloadError, at_line
from placement.workload.fields import Fields, shown
from placement.workload.lines import BAD_GZIP, numbered_lines, open_trace
from placement.workload.request import WorkloadRequest

TokenCounter = Callable[[str], int]
CHUNK_CHARS = 1 << 16
MAX_CONVERSATION_CHARS = 64 << 20
CHARS_PER_TOKEN = 4.0  # of English text, about; an estimate where no tokenizer is given
ASKED = {"human", "user"}
ANSWERED = {"gpt", "assistant", "chatgpt", "bing", "bard", "model"}
SPACE = " \t\r\n"


def estimate_tokens(chars_per_token: float = CHARS_PER_TOKEN) -> TokenCounter:
    """Counts by length alone."""
    return lambda text: max(1, math.ceil(len(text) / chars_per_token))


def read_conversations(path: Path, count: TokenCounter, every_turn: bool) -> Iterator[WorkloadRequest | None]:
    """The first question and answer of each conversation; or every turn, its prompt being all that came before.

    Without times. None for a conversation with no question that was answered.
    """
    for index, row in enumerate(_conversations(path)):
        turns = list(_turns(row))
        found = False
        asked, history = "", ""
        for is_question, text in turns:
            if not text:
                continue
            history += text
            if is_question:
                asked = history
            elif asked:
                found = True
                yield WorkloadRequest(0.0, max(1, count(asked)), max(1, count(text)), (), index, text=asked)
                asked = ""
                if not every_turn:
                    break
        if not found:
            yield None


def _turns(row: Fields) -> Iterator[tuple[bool, str]]:
    """(whether the user spoke, what was said) of every turn that is a question or an answer."""
    name = row.require("conversations", "conversation", "messages")
    turns = row.values[name]
    if not isinstance(turns, list):
        raise row.error(f"{name} is {shown(turns)}; it must be a list of turns")
    for turn in turns:
        if not isinstance(turn, dict):
            raise row.error(f"{name} has {shown(turn)}; a turn must be a JSON object")
        one = Fields(row.path, row.line, turn)
        speaker = one.word(one.require("from", "role"), "").lower()
        said = one.word(one.present("value", "content") or "value", "")
        if speaker in ASKED or speaker in ANSWERED:
            yield speaker in ASKED, said


def _conversations(path: Path) -> Iterator[Fields]:
    """Every conversation with the line it begins on."""
    with open_trace(path) as file:
        try:
            begin = file.read(64).decode("utf-8-sig", "replace").lstrip()
        except BAD_GZIP as error:
            raise at_line(path, 1, f"the compressed data is damaged: {error}") from None
    if begin.startswith("["):
        yield from _array_items(path)
    else:
        for number, text in numbered_lines(path):
            yield Fields.parse(path, number, text)


class _Window:
    """The part of the text that is being read, and the line it begins on."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.line, self.ended = "", 1, False

    def more(self) -> None:
        try:
            raw = self._file.read(CHUNK_CHARS)
            self.text += self._decoder.decode(raw, final=not raw)
        except (*BAD_GZIP, UnicodeDecodeError) as error:
            raise at_line(self._path, self.line, f"cannot be read as UTF-8 text: {error}") from None
        self.ended = not raw

    def skip(self, num_chars: int) -> None:
        self.line += self.text.count("\n", 0, num_chars)
        self.text = self.text[num_chars:]

    def next_char(self) -> str:
        """The next that is not space, which is dropped; empty at the end."""
        while True:
            self.skip(len(self.text) - len(self.text.lstrip(SPACE)))
            if self.text or self.ended:
                return self.text[:1]
            self.more()


def _array_items(path: Path) -> Iterator[Fields]:
    """Objects of a JSON array, one at a time: the file is never held whole."""
    decoder = json.JSONDecoder()
    with open_trace(path) as file:
        window = _Window(path, file)
        window.next_char()
        window.skip(1)  # the bracket
        if window.next_char() == "]":
            return
        while True:
            window.next_char()
            item, end = _decode(path, window, decoder)
            if not isinstance(item, dict):
                raise at_line(path, window.line, f"is {shown(item)}; a conversation must be a JSON object")
            yield Fields(path, window.line, item)
            window.skip(end)
            after = window.next_char()
            if after == "]":
                return
            if after != ",":
                raise at_line(path, window.line, f"{after or 'the end'!r} stands where ',' or ']' must")
            window.skip(1)


def _decode(path: Path, window: _Window, decoder: json.JSONDecoder) -> tuple[Any, int]:
    """One value at the window's begin, reading on until it is whole; reads double, so the tries stay few."""
    while True:
        try:
            item, end = decoder.raw_decode(window.text)
            if end < len(window.text) or window.ended:
                return item, end
        except RecursionError:
            raise at_line(path, window.line, "not JSON that can be read: nested too deeply") from None
        except ValueError as error:
            if window.ended:
                raise _not_json(path, window, error) from None
            if len(window.text) > MAX_CONVERSATION_CHARS:
                limit = f"{MAX_CONVERSATION_CHARS:,} characters"
                raise at_line(path, window.line, f"not JSON, or a conversation of more than {limit}") from None
        have = len(window.text)
        while len(window.text) < max(2 * have, CHUNK_CHARS) and not window.ended:
            window.more()


def _not_json(path: Path, window: _Window, error: ValueError) -> WorkloadError:
    at = error.lineno - 1 if isinstance(error, json.JSONDecodeError) else 0
    said = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    return at_line(path, window.line + at, f"not JSON: {said}")
