"""Whether a prompt can be served at all."""

from __future__ import annotations

from collections.abc import Sequence

from pdserve.errors import PromptTooLong, RequestError
from router.interface import ModelCard
from router.limits import Limits


def max_prompt_tokens(card: ModelCard, limits: Limits) -> int:
    """One token of the context is left for the answer."""
    return min(card.max_model_len - 1, limits.max_prompt_tokens)


def check_unicode(field: str, text: str) -> None:
    """Raises RequestError for text that no UTF-8 can carry: JSON can spell half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{field} holds a lone surrogate at character {error.start:,}", field=field) from None


def check_prompt_texts(
    texts: Sequence[tuple[str, str]], field: str, card: ModelCard, limits: Limits, max_token_chars: int
) -> int:
    """Before (field, text) are tokenized: Unicode, and not surely too long (no token is longer than max_token_chars).

    Returns the number of characters, all together.
    """
    num_chars = sum(len(text) for _, text in texts)
    limit = max_prompt_tokens(card, limits)
    if num_chars > limit * max_token_chars:
        at_least = -(-num_chars // max_token_chars)
        raise PromptTooLong(
            f"{field} has {num_chars:,} characters, at least {at_least:,} tokens, limit {limit:,} tokens", field=field
        )
    for name, text in texts:
        check_unicode(name, text)
    return num_chars


def check_prompt_tokens(ids: Sequence[int], field: str, card: ModelCard, limits: Limits) -> None:
    """Raises RequestError when empty, too long, or an id is not in the vocabulary."""
    if not ids:
        raise RequestError(f"{field} has no tokens", field=field)
    limit = max_prompt_tokens(card, limits)
    if len(ids) > limit:
        why = f"context {card.max_model_len:,} less one" if limit < limits.max_prompt_tokens else "of this server"
        raise PromptTooLong(f"{field} has {len(ids):,} tokens, limit {limit:,} ({why})", field=field)
    check_token_ids(ids, field, card)


def check_token_ids(ids: Sequence[int], field: str, card: ModelCard) -> None:
    """Raises RequestError naming the first index whose id is not in the vocabulary."""
    if min(ids) >= 0 and max(ids) < card.vocab_size:
        return
    index, bad = next((i, token) for i, token in enumerate(ids) if not 0 <= token < card.vocab_size)
    raise RequestError(f"{field}[{index}] is {bad}, allowed 0 to {card.vocab_size - 1:,}", field=f"{field}[{index}]")
