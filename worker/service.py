"""The worker's gRPC service: the router's session and other workers' handoff streams, behind the cluster's secret."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator

import grpc
import grpc.aio

from kv_transfer.target import HandoffTarget
from pdserve.errors import IncompatiblePeer, ServingError
from pdserve.ids import PROTOCOL_VERSION
from pdserve.v1 import worker_pb2 as pb
from pdserve.v1 import worker_pb2_grpc
from worker.outbox import Outbox
from worker.peers import SERVER_OPTIONS
from worker.runtime import Worker

log = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 10.0


class WorkerService(worker_pb2_grpc.WorkerServiceServicer):  # type: ignore[misc]
    """WorkerService of proto/pdserve/v1/worker.proto."""

    def __init__(self, worker: Worker, target: HandoffTarget, hello: pb.WorkerHello, secret: str) -> None:
        self._worker, self._target, self._hello = worker, target, hello
        self._authorization = f"Bearer {secret}".encode()

    async def _authenticate(self, context: grpc.aio.ServicerContext) -> None:
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        given_bytes = given.encode() if isinstance(given, str) else given
        if not hmac.compare_digest(given_bytes, self._authorization):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong cluster secret")

    async def Session(
        self, request_iterator: AsyncIterator[pb.RouterMessage], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.WorkerMessage]:
        """One router, until its stream ends; then everything it asked for is cancelled."""
        await self._authenticate(context)
        messages = aiter(request_iterator)
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            first = await anext(messages, None)
        if first is None or first.hello.protocol_version != PROTOCOL_VERSION:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"this worker speaks protocol {PROTOCOL_VERSION}")
        outbox = self._worker.open_session()
        reader = asyncio.create_task(self._read(messages, outbox))
        try:
            yield pb.WorkerMessage(hello=self._hello)
            while (message := await outbox.queue.get()) is not None:
                yield message
        finally:
            self._worker.close_session(outbox)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, messages: AsyncIterator[pb.RouterMessage], outbox: Outbox) -> None:
        try:
            async for message in messages:
                self._worker.on_message(message, outbox)
        except ServingError as error:
            log.error("session ended: %s", error.message)
        finally:
            outbox.close()

    async def Handoff(
        self, request_iterator: AsyncIterator[pb.SourceMessage], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.TargetMessage]:
        """One prefill worker's pair, until it ends."""
        await self._authenticate(context)
        try:
            async with contextlib.aclosing(self._target.serve_pair(request_iterator)) as answers:
                async for message in answers:
                    yield message
        except IncompatiblePeer as error:
            log.error("refused a pair: %s", error.message)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, error.message)


async def serve(service: WorkerService, host: str, port: int) -> tuple[grpc.aio.Server, int]:
    """Listen (port 0 picks a free one); the server and the port it got. OSError when the port is taken."""
    server = grpc.aio.server(options=SERVER_OPTIONS)
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(service, server)
    try:
        port = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {host}:{port}") from error
    await server.start()
    return server, port
