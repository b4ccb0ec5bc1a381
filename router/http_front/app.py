"""The routes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from pdserve import __version__
from pdserve.errors import NotFound, PermissionDenied, RequestError
from router.access import tenant_for
from router.generation import FrontDesk
from router.http_front.answer import Answer, DialectOf
from router.http_front.body import read_json_object
from router.http_front.called_tools import with_parser
from router.http_front.chat_dialect import ChatDialect
from router.http_front.completion_dialect import CompletionDialect
from router.http_front.gate import Gate, fits_header, serving_id
from router.http_front.parsing import Asked, parse_chat, parse_completion
from router.http_front.problem import HttpProblem, json_response, problem_from
from router.http_front.tokenization import TokenizationPages
from router.limits import FrontConfig, Limits
from router.trace_context import TRACE_HEADER, well_formed

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TENANT_HEADER = "x-pdserve-tenant"

Parse = Callable[[Mapping[str, Any], str, Limits], Asked]


def build_app(desk: FrontDesk, extra_routes: Sequence[BaseRoute] = ()) -> ASGIApp:
    """The HTTP application over a desk; extra_routes (a dashboard, say) stand beside its own, behind the same gate."""
    pages, tokenization = Pages(desk), TokenizationPages(desk)
    routes = [
        Route("/v1/completions", _generating(desk, parse_completion, CompletionDialect), methods=["POST"]),
        Route("/v1/chat/completions", _generating(desk, parse_chat, ChatDialect), methods=["POST"]),
        Route("/tokenize", tokenization.tokenize, methods=["POST"]),
        Route("/detokenize", tokenization.detokenize, methods=["POST"]),
        Route("/v1/models", pages.models),
        Route("/v1/models/{model:path}", pages.model),
        Route("/health", pages.health),
        Route("/ping", pages.health),
        Route("/ready", pages.ready),
        Route("/metrics", pages.metrics),
        Route("/metrics/targets", pages.metrics_targets),
        Route("/version", pages.version),
        *extra_routes,
    ]
    app = Starlette(
        routes=routes,
        middleware=[*_cors(desk.config), Middleware(Gate, config=desk.config)],
        exception_handlers={HTTPException: _unrouted, HttpProblem: _refused, Exception: _failed},
    )
    app.router.redirect_slashes = False
    return app


def _cors(config: FrontConfig) -> list[Middleware]:
    """Before the gate: a browser asks for permission without a key."""
    if not config.allowed_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=config.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    ]


def _generating(desk: FrontDesk, parse: Parse, dialect_of: DialectOf) -> Callable[[Request], Any]:
    """An endpoint that reads one of the two bodies and answers in its dialect."""

    async def endpoint(request: Request) -> Any:
        body = await read_json_object(request, desk.config.limits)
        try:
            tenant = tenant_for(request.state.key_tenant, request.headers.get(TENANT_HEADER, ""))
            asked = with_parser(parse(body, tenant, desk.config.limits), desk.config.tool_call_parser)
        except RequestError as error:
            raise problem_from(error) from None
        return Answer(desk, _named(asked, request, desk.config.limits), dialect_of)

    return endpoint


def _named(asked: Asked, request: Request, limits: Limits) -> Asked:
    """Under the id that the body gives, else the header's, else the one that the answer's header shows."""
    name, parent = asked.draft.request_id, well_formed(request.headers.get(TRACE_HEADER))
    if not name:
        name = serving_id(request.state.request_id, request.state.given_id)
    elif not request.state.given_id and fits_header(name, limits):  # else it is about to be refused
        request.state.request_id = name
    return replace(asked, draft=replace(asked.draft, request_id=name, trace_parent=parent))


class Pages:
    """The endpoints that only show something."""

    def __init__(self, desk: FrontDesk) -> None:
        self._desk = desk

    async def models(self, _request: Request) -> Response:
        return json_response({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if name != self._desk.card.served_name:
            raise problem_from(NotFound("no such model is served", field="model"))
        return json_response(self._model())

    async def health(self, _request: Request) -> Response:
        """Alive: the loop turns. What it is not ready for is told, and is no reason to end it."""
        reason = self._desk.why_not_ready
        return json_response({"status": "ok"} | ({"ready": False, "reason": reason} if reason else {}))

    async def ready(self, _request: Request) -> Response:
        reason = self._desk.why_not_ready
        return json_response(
            {"status": "not ready", "reason": reason} if reason else {"status": "ready"}, 503 if reason else 200
        )

    async def metrics(self, request: Request) -> Response:
        _refuse_tenants(request)
        return Response(self._desk.core.metrics_text(), media_type=METRICS_TYPE)

    async def metrics_targets(self, request: Request) -> Response:
        """The workers' own metrics as Prometheus' HTTP service discovery reads them."""
        _refuse_tenants(request)
        targets = [
            {
                "targets": [one.address],
                "labels": {"__meta_pdserve_worker": one.worker_id, "__meta_pdserve_role": one.role},
            }
            for one in self._desk.core.metrics_targets()
        ]
        return json_response(targets)

    async def version(self, _request: Request) -> Response:
        return json_response({"version": __version__})

    def _model(self) -> dict[str, Any]:
        card = self._desk.card
        return {
            "id": card.served_name,
            "object": "model",
            "created": 0,
            "owned_by": "pdserve",
            "root": card.served_name,
            "parent": None,
            "max_model_len": card.max_model_len,
        }


def _refuse_tenants(request: Request) -> None:
    """Metrics name every tenant and worker: a key that speaks for one must not see them."""
    if request.state.key_tenant:
        raise problem_from(PermissionDenied("this key speaks for one tenant; metrics show all"))


async def _unrouted(_request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    return HttpProblem(error.status_code, error.detail, code, headers=error.headers or {}).response()


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpProblem)
    return error.response()


async def _failed(_request: Request, _error: Exception) -> Response:
    """Our own bug; the server logs it, the client learns nothing of it."""
    return HttpProblem(500, "internal error", "internal").response()
