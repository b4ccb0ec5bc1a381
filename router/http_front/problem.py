"""Errors as OpenAI clients expect them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from pdserve.errors import NotFound, PromptTooLong, ServingError, StatusCode

_HTTP_STATUS = {StatusCode.FAILED_PRECONDITION: 409}  # the others carry theirs as their value
_TYPE = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_RETRYABLE = frozenset({429, 503})


@dataclass
class HttpProblem(Exception):
    """A request that the door itself refuses, before anyone looks at what it asks."""

    status: int
    message: str
    code: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, Any] = field(default_factory=dict)  # what its body holds beside the error

    def body(self) -> dict[str, Any]:
        kind = _TYPE.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}, **self.beside}

    def response(self) -> Response:
        return json_response(self.body(), self.status, self.headers)


def problem_from(error: ServingError) -> HttpProblem:
    """What a client is told of an error: its status, the field at fault, when to try again."""
    status = _HTTP_STATUS.get(error.status, error.status.value)
    headers = {}
    if status in _RETRYABLE:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s or 1.0)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return HttpProblem(status, error.message, _code(error), error.field or None, headers)


def _code(error: ServingError) -> str:
    """OpenAI's own word where there is one, else the gRPC status in lower case."""
    if isinstance(error, PromptTooLong):
        return "context_length_exceeded"
    if isinstance(error, NotFound) and error.field == "model":
        return "model_not_found"
    return {401: "invalid_api_key", 429: "rate_limit_exceeded"}.get(error.status.value, error.status.name.lower())


def json_response(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(to_json(body), status, dict(headers or {}), "application/json")


def to_json(body: object) -> bytes:
    return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
