"""Tokens to text as they come: what is said is never taken back, and the parts add up to the whole.

Two ways, chosen by the tokenizer's decoder:

    byte-level      a token is some bytes; the text is their UTF-8                    (GPT-2, Llama 3, Qwen, ...)
    windowed        decode(context + new) minus decode(context), once nothing that    (SentencePiece, WordPiece, ...)
                    follows can change it

Both equal the tokenizer's own decode of all tokens with special tokens skipped, and cost O(1) a token, amortised.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

CONTEXT_TOKENS = 4
"""Settled tokens that a window starts with; a decoder that looks further left than one token was not found."""


class Detokenizer(Protocol):
    """The text of one choice, token by token."""

    def push(self, token_id: int) -> str:
        """The text that this token settles: often its own, none inside a character, more after one."""
        ...

    def flush(self) -> str:
        """What was held back, once no token will follow."""
        ...


class ByteLevelDetokenizer:
    """For decoders that concatenate the tokens' bytes and read them as UTF-8, bad bytes replaced."""

    def __init__(self, token_bytes: Callable[[int], bytes], token_text: Callable[[int], str | None]) -> None:
        self._token_bytes = token_bytes  # b"" for skipped and unknown ids
        self._token_text = token_text  # the same as text; None where the bytes are no whole characters
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._inside = False  # perhaps inside a character

    def push(self, token_id: int) -> str:
        if not self._inside:  # nearly always
            text = self._token_text(token_id)
            if text is not None:
                return text
        text = self._utf8.decode(self._token_bytes(token_id))
        self._inside = self._utf8.getstate()[0] != b""
        return text

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class WindowedDetokenizer:
    """For every other decoder.

    A run of byte-fallback tokens (<0x..>) is decoded as one: valid UTF-8 becomes characters, and a single bad byte
    turns the *whole* run into replacement characters. So a run waits for the first token that is not a byte.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], is_skipped: Callable[[int], bool], is_byte: Callable[[int], bool]
    ) -> None:
        self._decode = decode
        self._is_skipped = is_skipped
        self._is_byte = is_byte
        self._context: list[int] = []  # settled tokens, the last few
        self._pending: list[int] = []  # tokens whose text is not out yet

    def push(self, token_id: int) -> str:
        if self._is_skipped(token_id):
            return ""  # the decoder never sees it, not even as a neighbour
        if self._is_byte(token_id):
            self._pending.append(token_id)
            return ""
        # The run of bytes before this token is settled, and so is this token.
        self._pending.append(token_id)
        return self._settle()

    def flush(self) -> str:
        return self._settle() if self._pending else ""

    def _settle(self) -> str:
        before = self._decode(self._context)
        after = self._decode(self._context + self._pending)
        # A context cut inside a run of bytes would decode otherwise: keep the run whole.
        keep = (self._context + self._pending)[-CONTEXT_TOKENS:]
        if any(map(self._is_byte, keep)):
            keep = _from_run_start(self._context + self._pending, len(keep), self._is_byte)
        self._context, self._pending = keep, []
        return after[len(before) :]


def _from_run_start(tokens: list[int], num_kept: int, is_byte: Callable[[int], bool]) -> list[int]:
    """The last num_kept tokens, without the byte tokens that lead them (their run began before)."""
    start = len(tokens) - num_kept
    while start < len(tokens) - 1 and is_byte(tokens[start]):
        start += 1
    return tokens[start:]
