"""Prompts become token ids: short ones at once, long ones on threads, so that nobody else waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from pdserve.errors import RequestError
from router.interface import ModelCard
from router.limits import Limits
from router.text import ChatTemplateError, Tokenizer
from router.validation import (
    Prompt,
    PromptChat,
    PromptText,
    PromptTokens,
    RequestDraft,
    check_prompt_texts,
    check_prompt_tokens,
)

TOKENIZER_THREADS = 2
MAX_INLINE_IDS = 4096  # a millisecond or so

T = TypeVar("T")


class PromptEncoder:
    """Of one event loop. Every method raises RequestError naming the field at fault."""

    def __init__(self, tokenizer: Tokenizer, card: ModelCard, limits: Limits) -> None:
        self._tokenizer = tokenizer
        self._card = card
        self._limits = limits
        self._threads = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="tokenizer")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def prompt(self, prompt: Prompt, field: str, draft: RequestDraft) -> tuple[int, ...]:
        """What can be served: not empty, cut where the draft wants that, within the context."""
        ids = tuple(prompt.ids) if isinstance(prompt, PromptTokens) else tuple(await self.text(prompt, field))
        if draft.keep_prompt_tokens is not None:
            ids = ids[-self._kept(draft) :]
        check_prompt_tokens(ids, field, self._card, self._limits)
        return ids

    async def text(self, prompt: PromptText | PromptChat, field: str) -> list[int]:
        """Ids of a text that is not surely too long."""
        if isinstance(prompt, PromptText):
            if not prompt.text:
                raise RequestError(f"{field} is empty", field=field)
            texts = [(field, prompt.text)]
        else:
            texts = [(f"{field}[{n}]", text) for n, message in enumerate(prompt.messages) for text in message.texts()]
            texts += [("tools or chat_template_kwargs", text) for text in prompt.options.texts()]
        num_chars = check_prompt_texts(texts, field, self._card, self._limits, self._tokenizer.max_token_chars)
        if num_chars <= self._limits.max_inline_chars:
            return self._encode(prompt, field)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._encode, prompt, field)

    async def decoded(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Their text."""
        return await self._for(ids, partial(self._tokenizer.decode, ids, skip_special_tokens=skip_special_tokens))

    async def spelled(self, ids: Sequence[int]) -> list[str | None]:
        """Each as the vocabulary has it."""
        return await self._for(ids, lambda: [self._tokenizer.token(token_id) for token_id in ids])

    async def _for(self, ids: Sequence[int], work: Callable[[], T]) -> T:
        if len(ids) <= MAX_INLINE_IDS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _encode(self, prompt: PromptText | PromptChat, field: str) -> list[int]:
        if isinstance(prompt, PromptText):
            return self._tokenizer.encode(prompt.text, add_special_tokens=prompt.add_special_tokens)
        if prompt.options.tools and not self._tokenizer.has_tools_template:
            raise RequestError("the model's chat template has no place for tools", field="tools")
        try:
            return self._tokenizer.encode_chat(prompt.messages, prompt.options)
        except ChatTemplateError as error:
            raise RequestError(str(error), field=field) from error

    def _kept(self, draft: RequestDraft) -> int:
        """How many of the prompt's last tokens stay."""
        kept = draft.keep_prompt_tokens
        assert kept is not None
        if kept == -1:
            return max(1, self._card.max_model_len - max(1, draft.sampling.max_tokens or draft.default_max_tokens or 1))
        if kept < 1:
            raise RequestError(
                f"truncate_prompt_tokens is {kept:,}, allowed -1 and at least 1", field="truncate_prompt_tokens"
            )
        return kept
