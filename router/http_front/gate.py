"""What every HTTP request passes before a route sees it: its id, header size, path, key."""

from __future__ import annotations

import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pdserve.errors import Unauthenticated
from pdserve.ids import new_request_id
from router.access import KeyRing
from router.http_front.problem import HttpProblem, problem_from
from router.limits import FrontConfig, Limits

ID_HEADER = b"x-request-id"


class Gate:
    """Refuses oversized headers (431), escaped paths (404), and requests without a key (401).

    Leaves in the request's state: `request_id`, which the answer shows as x-request-id (the client's own, if it sent
    one), `given_id`, whether it did, and `key_tenant`, the tenant that its key speaks for (empty: any).
    """

    def __init__(self, app: ASGIApp, config: FrontConfig) -> None:
        self._app = app
        self._limits = config.limits
        self._keyless_paths = config.keyless_paths
        self._keys = KeyRing(config.api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = _header(scope, ID_HEADER).decode("latin-1")
        is_given = fits_header(given, self._limits)
        state = scope.setdefault("state", {})
        state["given_id"] = is_given
        state["request_id"] = given if is_given else new_request_id()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (ID_HEADER, state["request_id"].encode())]
            await send(message)

        problem = self._problem(scope)
        await (self._app if problem is None else problem.response())(scope, receive, send_with_id)

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
        scope["state"]["key_tenant"] = ""
        if scope["path"] in self._keyless_paths:
            return None
        try:
            scope["state"]["key_tenant"] = self._keys.tenant_of(_header(scope, b"authorization"))
        except Unauthenticated as error:
            return problem_from(error)
        return None


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def fits_header(request_id: str, limits: Limits) -> bool:
    """Whether an id that a client gave can be shown in the answer's header."""
    return 1 <= len(request_id) <= limits.max_id_chars and all(" " <= letter <= "~" for letter in request_id)


def serving_id(shown_id: str, is_given: bool) -> str:
    """Under which id a request runs: a client's own id may come again while it runs, so it gets something added."""
    if not is_given:
        return shown_id
    plain = shown_id[:100].replace("/", "_").replace("\\", "_")
    return f"{plain}-{secrets.token_hex(4)}"
