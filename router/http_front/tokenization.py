"""/tokenize and /detokenize, in vLLM's shape."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pdserve.errors import RequestError, ServingError
from router.generation import FrontDesk
from router.http_front import known_fields
from router.http_front.body import read_json_object
from router.http_front.chat_body import parse_conversation, parse_tools
from router.http_front.fields import Fields, as_string
from router.http_front.problem import json_response, problem_from
from router.tokenization import detokenized, tokenized
from router.validation import PromptChat, PromptText


class TokenizationPages:
    """Text to ids as the other endpoints would do it, and back."""

    def __init__(self, desk: FrontDesk) -> None:
        self._desk = desk

    async def tokenize(self, request: Request) -> Response:
        fields = Fields(await read_json_object(request, self._desk.config.limits))
        try:
            return json_response(await self._tokenized(fields))
        except ServingError as error:
            raise problem_from(error) from None

    async def detokenize(self, request: Request) -> Response:
        fields = Fields(await read_json_object(request, self._desk.config.limits))
        try:
            return json_response(await self._detokenized(fields))
        except ServingError as error:
            raise problem_from(error) from None

    async def _tokenized(self, fields: Fields) -> dict[str, Any]:
        desk = self._desk
        model = fields.string("model") or ""
        with_strings = fields.boolean("return_token_strs")
        if fields.raw("messages") is None:
            field = "prompt"
            adds_special_tokens = fields.boolean("add_special_tokens", True)
            prompt: PromptText | PromptChat = PromptText(as_string(fields.raw("prompt"), field), adds_special_tokens)
        else:
            field = "messages"
            fields.accept_only(known_fields.TOKENIZE_CHAT)
            prompt = parse_conversation(fields, desk.config.limits, parse_tools(fields))
        fields.refuse_unknown()
        ids = await tokenized(desk, model, prompt, field)
        strings = await desk.prompts.spelled(ids) if with_strings else None
        return {"count": len(ids), "max_model_len": desk.card.max_model_len, "tokens": ids, "token_strs": strings}

    async def _detokenized(self, fields: Fields) -> dict[str, Any]:
        model = fields.string("model") or ""
        if fields.raw("tokens") is None:
            raise RequestError("tokens is missing", field="tokens")
        ids = fields.integers("tokens")
        fields.refuse_unknown()
        return {"prompt": await detokenized(self._desk, model, ids, "tokens")}
