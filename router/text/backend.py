"""Long texts through the tokenizers library without holding the interpreter: its calls for one text hold the lock.

A batch of one lets go of it, and 300,000 characters take a fifth of a second. The library computes a batch on threads
of its own, few for all: what is encoded on the router's loop must not queue there behind long texts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import tokenizers

LONG_CHARS = 1 << 10  # from there on the lock would be held for a millisecond and more
LONG_IDS = 4096  # the same for decoding


def ids_of(backend: tokenizers.Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """What `backend.encode` gives."""
    if len(text) > LONG_CHARS and not _is_on_a_loop():
        (encoded,) = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    else:
        encoded = backend.encode(text, add_special_tokens=add_special_tokens)
    ids: list[int] = encoded.ids
    return ids


def text_of(backend: tokenizers.Tokenizer, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
    """What `backend.decode` gives."""
    if len(ids) > LONG_IDS and not _is_on_a_loop():
        texts: list[str] = backend.decode_batch([ids], skip_special_tokens=skip_special_tokens)
        return texts[0]
    text: str = backend.decode(ids, skip_special_tokens=skip_special_tokens)
    return text


def _is_on_a_loop() -> bool:
    """Whether an event loop runs in this thread."""
    return asyncio._get_running_loop() is not None
