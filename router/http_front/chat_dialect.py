"""The shapes of /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pdserve.sampling import FinishReason, TokenLogprobs
from router.choice import ChoiceEnd, ChoiceUpdate
from router.generation import Generation
from router.http_front.called_tools import CalledTools
from router.http_front.dialect import Dialect, finite
from router.http_front.parsing import Asked
from router.text import Tokenizer


class ChatDialect(Dialect):
    """/v1/chat/completions"""

    id_prefix = "chatcmpl-"
    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def __init__(self, asked: Asked, generation: Generation, model: str, tokenizer: Tokenizer) -> None:
        super().__init__(asked, generation, model, tokenizer)
        self._tools = [CalledTools(asked) for _ in generation.requests] if asked.calls_tools else []

    def streamed_choice(self, update: ChoiceUpdate, is_first: bool) -> dict[str, Any]:
        delta: dict[str, Any] = {"role": "assistant"} if is_first else {}
        if not self._tools:
            delta["content"] = update.text
        else:
            said = self._tools[update.index].push(update.text, is_last=update.end is not None)
            delta["content"] = said.text
            if said.calls:
                delta["tool_calls"] = said.calls
        return self._choice(update.index, "delta", delta, update.logprobs, update.end)

    def whole_choice(self, index: int, end: ChoiceEnd, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": end.text, "refusal": None}
        if self._tools:
            said = self._tools[index].push(end.text, is_last=True)
            message["content"] = said.text or None
            if said.calls:
                message["tool_calls"] = [{key: call[key] for key in ("id", "type", "function")} for call in said.calls]
        return self._choice(index, "message", message, logprobs, end)

    def add_prompt_ids(self, body: dict[str, Any], choice: dict[str, Any], ids: Sequence[int]) -> None:
        body["prompt_token_ids"] = list(ids)

    def _choice(
        self, index: int, key: str, message: dict[str, Any], logprobs: Iterable[TokenLogprobs], end: ChoiceEnd | None
    ) -> dict[str, Any]:
        shown = {"content": [self._logprob(e) for e in logprobs], "refusal": None} if self.with_logprobs else None
        reason = None if end is None else end.finish_reason.value
        has_called = bool(self._tools and self._tools[index].num_calls) and not self._asked.finishes_as_stop
        if reason == FinishReason.STOP.value and has_called:
            reason = "tool_calls"
        return {"index": index, key: message, "logprobs": shown, "finish_reason": reason}

    def _logprob(self, entry: TokenLogprobs) -> dict[str, Any]:
        top = [self._token(token_id, logprob) for token_id, logprob in entry.top]
        return self._token(entry.token_id, entry.logprob) | {"top_logprobs": top}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        raw = list(self._tokenizer.token_bytes(token_id))
        return {"token": self.shown_token(token_id), "logprob": finite(logprob), "bytes": raw}
