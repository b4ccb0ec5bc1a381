"""What every HTTP request passes before a route sees it: header size, path, key."""

from __future__ import annotations

import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from pdserve.errors import Unauthenticated
from router.http_front.problem import HttpProblem, problem_from
from router.limits import FrontConfig


class Gate:
    """Refuses oversized headers (431), escaped paths (404), and requests without the key (401)."""

    def __init__(self, app: ASGIApp, config: FrontConfig) -> None:
        self._app = app
        self._limits = config.limits
        self._keyless_paths = config.keyless_paths
        self._expected = None if config.api_key is None else f"Bearer {config.api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
        else:
            await problem.response()(scope, receive, send)

    def _problem(self, scope: Scope) -> HttpProblem | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        limits = self._limits
        num_bytes = sum(len(name) + len(value) for name, value in headers)
        if num_bytes > limits.max_header_bytes or len(headers) > limits.max_headers:
            message = (
                f"{len(headers):,} headers of {num_bytes:,} bytes, limit {limits.max_headers} of"
                f" {limits.max_header_bytes:,} bytes"
            )
            return HttpProblem(431, message, "headers_too_large", headers={"connection": "close"})
        # No route needs an escape, so two spellings of one path never differ in what they may do.
        if b"%" in scope.get("raw_path", b""):
            return HttpProblem(404, "Not Found", "not_found")
        if self._expected is not None and scope["path"] not in self._keyless_paths:
            given = next((value for name, value in headers if name == b"authorization"), b"")
            if not hmac.compare_digest(given, self._expected):
                return problem_from(Unauthenticated("an API key is needed: header `Authorization: Bearer KEY`"))
        return None
