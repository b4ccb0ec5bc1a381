"""The listening gRPC server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from router.access import KeyRing
from router.generation import FrontDesk
from router.grpc_front.access import KeyInterceptor
from router.grpc_front.health import ReadinessHealth
from router.grpc_front.service import SERVICE_NAME, InferenceService
from router.limits import Limits

SPARE_RPCS = 64
"""Calls beyond the running requests: health, info, aborts, and refusals that say when to come back."""
KEEPALIVE_S = 10.0
PING_TIMEOUT_S = 3.0
MIN_CLIENT_PING_S = 1.0


def channel_options(limits: Limits) -> list[tuple[str, int]]:
    """Limits, and a dead client noticed within about KEEPALIVE_S + PING_TIMEOUT_S while a call runs.

    keepalive_timeout alone does not end a stalled connection, ping_timeout does (measured: 60 s against 3.3 s). A
    server that keeps its default ping policy sends GOAWAY to a client with a brisk keepalive and kills its calls.
    """
    return [
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", -1),  # the complete of a long answer is bounded by the context
        ("grpc.max_metadata_size", limits.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.max_metadata_bytes),
        ("grpc.max_concurrent_streams", limits.max_streams_per_connection),
        ("grpc.keepalive_time_ms", int(1000 * KEEPALIVE_S)),
        ("grpc.keepalive_timeout_ms", int(1000 * PING_TIMEOUT_S)),
        ("grpc.http2.ping_timeout_ms", int(1000 * PING_TIMEOUT_S)),
        ("grpc.http2.min_ping_interval_without_data_ms", int(1000 * MIN_CLIENT_PING_S)),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.so_reuseport", 0),  # two servers on one port share clients silently: refuse instead
    ]


@dataclass(frozen=True, slots=True)
class GrpcFront:
    """A running server. Stop it once; draining is the desk's."""

    port: int
    server: grpc.aio.Server
    watcher: asyncio.Task[None]

    async def stop(self, grace_s: float) -> None:
        """No new calls; calls that run get grace_s to end."""
        self.watcher.cancel()
        await asyncio.gather(self.watcher, return_exceptions=True)
        await self.server.stop(grace_s)


async def serve_grpc(desk: FrontDesk, address: str) -> GrpcFront:
    """Listen on host:port (port 0 picks a free one) and answer. Raises OSError when the address cannot be had."""
    limits = desk.config.limits
    keys = KeyRing(desk.config.api_keys)
    interceptors: Sequence[grpc.aio.ServerInterceptor] = () if keys.is_open else (KeyInterceptor(keys),)
    server = grpc.aio.server(
        interceptors=interceptors,
        options=channel_options(limits),
        maximum_concurrent_rpcs=limits.max_concurrent_requests + SPARE_RPCS,
    )
    server.add_generic_rpc_handlers((InferenceService(desk).handler(),))
    readiness = ReadinessHealth((SERVICE_NAME,), lambda: not desk.why_not_ready)
    health_pb2_grpc.add_HealthServicer_to_server(readiness, server)
    reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from error
    await server.start()
    return GrpcFront(port, server, asyncio.create_task(readiness.refresh_forever()))
