"""The API key on gRPC: `authorization: Bearer KEY` in the metadata of every call but health."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable

import grpc

from pdserve.errors import Unauthenticated
from router.grpc_front.status import abort_with

HEALTH_PREFIX = "/grpc.health.v1.Health/"


class KeyInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Refuses calls without the key, before their message is read."""

    def __init__(self, api_key: str) -> None:
        self._expected = f"Bearer {api_key}".encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(HEALTH_PREFIX):
            return handler
        if self._is_allowed(dict(handler_call_details.invocation_metadata or ())):
            return handler
        return _refusal(handler)

    def _is_allowed(self, metadata: dict[str, str | bytes]) -> bool:
        given = metadata.get("authorization", b"")
        raw = given.encode("utf-8", "surrogateescape") if isinstance(given, str) else given
        return hmac.compare_digest(raw, self._expected)


async def _refuse(_request: object, context: grpc.aio.ServicerContext) -> None:
    await abort_with(context, Unauthenticated("an API key is needed: metadata `authorization: Bearer KEY`"))


def _refusal(handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
    """A handler of the same shape (grpc insists on that) that only refuses."""
    if handler.request_streaming and handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(_refuse)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(_refuse)
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(_refuse)
    return grpc.unary_unary_rpc_method_handler(_refuse)
