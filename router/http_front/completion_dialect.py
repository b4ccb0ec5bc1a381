"""The shapes of /v1/completions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pdserve.sampling import TokenLogprobs
from router.choice import ChoiceEnd, ChoiceUpdate
from router.generation import Generation
from router.http_front.dialect import Dialect, finite
from router.http_front.parsing import Asked
from router.prompts import PromptEncoder
from router.text import Tokenizer
from router.validation import PromptText


class CompletionDialect(Dialect):
    """/v1/completions"""

    id_prefix = "cmpl-"
    chunk_object = whole_object = "text_completion"

    def __init__(self, asked: Asked, generation: Generation, model: str, tokenizer: Tokenizer) -> None:
        super().__init__(asked, generation, model, tokenizer)
        self._offsets = [0] * len(generation.requests)
        self._echoed: list[str] = []  # by prompt

    async def prepare(self, prompts: PromptEncoder) -> None:
        if self._asked.echo:
            self._echoed = [await self._prompt_text(n, prompts) for n in range(len(self._asked.draft.prompts))]

    def streamed_choice(self, update: ChoiceUpdate, is_first: bool) -> dict[str, Any]:
        text = self._echo(update.index) + update.text if is_first else update.text
        return self._choice(update.index, text, update.logprobs, update.end)

    def whole_choice(self, index: int, end: ChoiceEnd, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
        return self._choice(index, self._echo(index) + end.text, logprobs, end)

    def add_prompt_ids(self, body: dict[str, Any], choice: dict[str, Any], ids: Sequence[int]) -> None:
        choice["prompt_token_ids"] = list(ids)

    def _echo(self, index: int) -> str:
        return self._echoed[index // self._asked.draft.num_choices] if self._echoed else ""

    async def _prompt_text(self, position: int, prompts: PromptEncoder) -> str:
        """As it was given; ids, and what was cut, as the text of what was served."""
        draft = self._asked.draft
        prompt = draft.prompts[position]
        if isinstance(prompt, PromptText) and draft.keep_prompt_tokens is None:
            return prompt.text
        ids = self._requests[position * draft.num_choices].prompt_token_ids
        return await prompts.decoded(ids, skip_special_tokens=draft.output.skip_special_tokens)

    def _choice(
        self, index: int, text: str, logprobs: Sequence[TokenLogprobs], end: ChoiceEnd | None
    ) -> dict[str, Any]:
        reason = None if end is None else end.finish_reason.value
        shown = self._logprobs(index, logprobs) if self.with_logprobs else None
        return {"index": index, "text": text, "logprobs": shown, "finish_reason": reason}

    def _logprobs(self, index: int, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
        show = self.shown_token
        tokens = [show(entry.token_id) for entry in entries]
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [finite(entry.logprob) for entry in entries],
            "top_logprobs": [{show(i): finite(p) for i, p in _with_chosen(entry)} for entry in entries],
            "text_offset": offsets,
        }


def _with_chosen(entry: TokenLogprobs) -> Iterable[tuple[int, float]]:
    """OpenAI's list of the most likely tokens always has the chosen one."""
    chosen = () if any(token_id == entry.token_id for token_id, _ in entry.top) else ((entry.token_id, entry.logprob),)
    return (*entry.top, *chosen)
