"""Opens a prefill worker's Handoff stream to a decode worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio

from pdserve.errors import PeerLost, error_from_status
from pdserve.v1 import worker_pb2 as pb
from pdserve.v1 import worker_pb2_grpc

MAX_MESSAGE_BYTES = 16 << 20

# A hung peer is noticed within about 3 s (RELIABILITY R4); the server side permits pings that often (R5).
CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
SERVER_OPTIONS = (
    *CHANNEL_OPTIONS,
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.so_reuseport", 0),
)


_BROKEN = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED)


class HandoffCall:
    """One open Handoff stream on a channel of its own."""

    def __init__(self, address: str, secret: str, outgoing: AsyncIterator[pb.SourceMessage]) -> None:
        self._address = address
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        stub = worker_pb2_grpc.WorkerServiceStub(self._channel)
        self._call = stub.Handoff(outgoing, metadata=(("authorization", f"Bearer {secret}"),))
        self._closing: asyncio.Task[None] | None = None

    async def __aiter__(self) -> AsyncIterator[pb.TargetMessage]:
        try:
            async for message in self._call:
                yield message
        except grpc.aio.AioRpcError as error:
            details = (error.details() or "").split("\n", 1)[0][:200]
            message = f"{self._address}: {details}"
            # A stream that breaks while it is written to may end as gRPC's own INTERNAL: its prompt is computed again.
            lost = error.code() in _BROKEN
            raise (PeerLost(message) if lost else error_from_status(error.code().name, message)) from None

    def cancel(self) -> bool:
        """Close the stream and its channel; safe to repeat."""
        cancelled = bool(self._call.cancel())
        if self._closing is None:
            self._closing = asyncio.create_task(self._channel.close())
        return cancelled


class PeerConnector:
    """Calls other workers with the cluster's secret."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def __call__(self, address: str, outgoing: AsyncIterator[pb.SourceMessage]) -> HandoffCall:
        return HandoffCall(address, self._secret, outgoing)
