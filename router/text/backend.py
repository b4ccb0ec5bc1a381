"""Long texts through the tokenizers library without holding the interpreter: its calls for one text hold the lock.

A batch of one lets go of it, and 300,000 characters take a fifth of a second. The library computes a batch on threads
of its own, few for all: a short text, which is encoded on the router's loop, must not queue there behind long ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers

LONG_CHARS = 32 << 10  # more than is ever encoded on the loop
LONG_IDS = 4096  # the same for decoding


def ids_of(backend: tokenizers.Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """What `backend.encode` gives."""
    if len(text) > LONG_CHARS:
        (encoded,) = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    else:
        encoded = backend.encode(text, add_special_tokens=add_special_tokens)
    ids: list[int] = encoded.ids
    return ids


def text_of(backend: tokenizers.Tokenizer, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
    """What `backend.decode` gives."""
    if len(ids) > LONG_IDS:
        texts: list[str] = backend.decode_batch([ids], skip_special_tokens=skip_special_tokens)
        return texts[0]
    text: str = backend.decode(ids, skip_special_tokens=skip_special_tokens)
    return text
