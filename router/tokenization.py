"""Text to token ids as requests are served with, and back: what both front doors offer beside generation."""

from __future__ import annotations

from collections.abc import Sequence

from pdserve.errors import PromptTooLong
from router.generation import FrontDesk
from router.validation import PromptChat, PromptText, check_model
from router.validation.prompt import check_token_ids


async def tokenized(desk: FrontDesk, model: str, prompt: PromptText | PromptChat, field: str) -> list[int]:
    """Ids of a prompt, none of an empty one.

    Raises RequestError naming what is at fault; what refuses any request when there is no room for it.
    """
    check_model(model, desk.card, desk.config.limits)
    if isinstance(prompt, PromptText) and not prompt.text:
        return []
    async with desk.aside():
        return await desk.prompts.text(prompt, field)


async def detokenized(desk: FrontDesk, model: str, ids: Sequence[int], field: str) -> str:
    """Their text, special tokens shown. Raises as `tokenized`."""
    check_model(model, desk.card, desk.config.limits)
    limit = desk.config.limits.max_prompt_tokens
    if len(ids) > limit:
        raise PromptTooLong(f"{field} has {len(ids):,} tokens, limit {limit:,}", field=field)
    if ids:
        check_token_ids(ids, field, desk.card)
    async with desk.aside():
        return await desk.prompts.decoded(ids)
