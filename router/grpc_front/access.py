"""The API key on gRPC: `authorization: Bearer KEY` in the metadata of every call but health."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import grpc

from pdserve.errors import Unauthenticated
from router.access import KeyRing
from router.grpc_front.status import abort_with

HEALTH_PREFIX = "/grpc.health.v1.Health/"


class KeyInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Refuses calls without a key, before their message is read."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(HEALTH_PREFIX):
            return handler
        try:
            key_tenant(self._keys, handler_call_details.invocation_metadata)
        except Unauthenticated:
            return _refusal(handler)
        return handler


def key_tenant(keys: KeyRing, metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The tenant that a call's key speaks for, empty for any. Raises Unauthenticated."""
    given = dict(metadata or ()).get("authorization", b"")
    return keys.tenant_of(given.encode("utf-8", "surrogateescape") if isinstance(given, str) else given)


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
