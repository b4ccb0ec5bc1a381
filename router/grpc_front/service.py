"""The calls of `pdserve.v1.InferenceService`, over raw bytes.

Handlers take and give bytes: grpc answers a message that it cannot parse with UNKNOWN and a Python class name.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import grpc

from pdserve import __version__
from pdserve.errors import Cancelled, InvariantViolation, NotFound, RequestError, ServingError
from pdserve.v1 import inference_pb2 as pb
from router.access import KeyRing, tenant_for
from router.generation import FrontDesk
from router.grpc_front.access import key_tenant
from router.grpc_front.conversion import Responses, draft_from, parse, worker_info
from router.grpc_front.status import abort_with
from router.tokenization import detokenized, tokenized
from router.trace_context import TRACE_HEADER, well_formed
from router.validation import PromptText, resolve_tenant

logger = logging.getLogger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name

T = TypeVar("T")


class InferenceService:
    """One method per call of the service."""

    def __init__(self, desk: FrontDesk) -> None:
        self._desk = desk
        self._keys = KeyRing(desk.config.api_keys)

    def handler(self) -> grpc.GenericRpcHandler:
        """What a server registers."""
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                "Generate": grpc.unary_stream_rpc_method_handler(self.generate),
                "GetServerInfo": grpc.unary_unary_rpc_method_handler(self.get_server_info),
                "Abort": grpc.unary_unary_rpc_method_handler(self.abort),
                "Tokenize": grpc.unary_unary_rpc_method_handler(self.tokenize),
                "Detokenize": grpc.unary_unary_rpc_method_handler(self.detokenize),
            },
        )

    async def generate(self, raw: bytes, context: grpc.aio.ServicerContext) -> None:
        """Streams one completion. A client that cancels cancels this task, and leaving `serve` frees everything."""

        async def stream() -> None:
            draft = draft_from(parse(pb.GenerateRequest, raw), context.time_remaining())
            if not self._keys.is_open:
                draft = replace(draft, tenant=self._tenant(context, draft.tenant))
            parent = _trace_parent(context)
            if parent is not None:
                draft = replace(draft, trace_parent=parent)
            async with self._desk.serve(draft) as generation:
                responses = Responses(generation.request_id)
                ended = False
                while not ended:
                    for update in await generation.take():
                        for response in responses.of(update):
                            await context.write(response)
                        ended = ended or update.end is not None

        await _answering(context, stream)

    async def get_server_info(self, raw: bytes, context: grpc.aio.ServicerContext) -> bytes:
        async def info() -> bytes:
            parse(pb.GetServerInfoRequest, raw)
            card = self._desk.card
            response = pb.GetServerInfoResponse(
                model=card.served_name,
                max_model_len=card.max_model_len,
                vocab_size=card.vocab_size,
                version=__version__,
                workers=[worker_info(worker) for worker in self._desk.core.workers()],
            )
            return bytes(response.SerializeToString())

        return await _answering(context, info)

    async def abort(self, raw: bytes, context: grpc.aio.ServicerContext) -> bytes:
        async def abort() -> bytes:
            request = parse(pb.AbortRequest, raw)
            if not request.request_id:
                raise RequestError("request_id is missing", field="request_id")
            tenant = resolve_tenant(self._tenant(context, request.tenant), self._desk.config)
            if not self._desk.core.abort(request.request_id, tenant):
                # The same words for unknown, finished and another's: who may not cancel may not learn either.
                raise NotFound("no such request is running", field="request_id")
            return bytes(pb.AbortResponse().SerializeToString())

        return await _answering(context, abort)

    async def tokenize(self, raw: bytes, context: grpc.aio.ServicerContext) -> bytes:
        async def tokenize() -> bytes:
            request = parse(pb.TokenizeRequest, raw)
            tokens = await tokenized(self._desk, request.model, PromptText(request.text), "text")
            response = pb.TokenizeResponse(ids=tokens, max_model_len=self._desk.card.max_model_len)
            return bytes(response.SerializeToString())

        return await _answering(context, tokenize)

    async def detokenize(self, raw: bytes, context: grpc.aio.ServicerContext) -> bytes:
        async def detokenize() -> bytes:
            request = parse(pb.DetokenizeRequest, raw)
            text = await detokenized(self._desk, request.model, request.ids, "ids")
            return bytes(pb.DetokenizeResponse(text=text).SerializeToString())

        return await _answering(context, detokenize)

    def _tenant(self, context: grpc.aio.ServicerContext, asked: str) -> str:
        return tenant_for(key_tenant(self._keys, context.invocation_metadata()), asked)


def _trace_parent(context: grpc.aio.ServicerContext) -> str | None:
    given = [value for name, value in context.invocation_metadata() or () if name == TRACE_HEADER]
    return well_formed(given[0]) if given else None


async def _answering(context: grpc.aio.ServicerContext, call: Callable[[], Awaitable[T]]) -> T:
    """The call's result; an error becomes the status that it stands for, and our own bugs show nothing."""
    try:
        return await call()
    except ServingError as error:
        failure = error
    except Exception:
        logger.exception("a call failed in the gRPC front")
        failure = InvariantViolation("internal error")
    if isinstance(failure, Cancelled):
        logger.info("request cancelled: %s", failure.message)
    await abort_with(context, failure)
