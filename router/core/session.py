"""One session to one worker: a multiplexed stream that begins with two hellos and ends with the worker's life.

    connect() ──hello──> worker ──hello──> WorkerIdentity
    send(message) ──bounded queue──> writer task ──> worker
    events() <── one message per step, status every second ── worker        ends by raising ServingError

A session is never mended: whoever owns it makes another one, and learns from the boot id whether it is the same worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio

from pdserve.errors import IncompatiblePeer, PeerLost, ServingError, Unauthenticated
from pdserve.ids import PROTOCOL_VERSION
from pdserve.v1 import worker_pb2, worker_pb2_grpc
from router.core.config import SessionConfig
from router.core.messages import WorkerEvent, WorkerIdentity
from router.core.wire import event_from_proto, identity_from_proto

_REFUSALS = {
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: Unauthenticated,
    grpc.StatusCode.FAILED_PRECONDITION: IncompatiblePeer,
}


def _channel_options(config: SessionConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.keepalive_time_ms", round(config.keepalive_time_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(config.keepalive_timeout_s * 1000)),
        ("grpc.http2.ping_timeout_ms", round(config.keepalive_timeout_s * 1000)),  # R4: without it, 60 s
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),  # a new session connects afresh, without another one's backoff
    ]


def _as_error(address: str, error: grpc.aio.AioRpcError) -> ServingError:
    kind = _REFUSALS.get(error.code(), PeerLost)
    return kind(f"session to {address} ended: {error.code().name} {error.details() or ''}".rstrip())


class WorkerSession:
    """Used once: connect, then events until it raises, then close (always)."""

    def __init__(self, address: str, secret: str, boot_id: bytes, config: SessionConfig) -> None:
        self.address = address
        self._secret = secret
        self._boot_id = boot_id  # the router's
        self._config = config
        self._outgoing: asyncio.Queue[worker_pb2.RouterMessage] = asyncio.Queue(config.max_outgoing)
        self._channel: grpc.aio.Channel | None = None
        self._call: grpc.aio.StreamStreamCall | None = None
        self._writer: asyncio.Task[None] | None = None
        self._failure = ""  # why we ended it ourselves

    async def connect(self) -> WorkerIdentity:
        """Exchange hellos. Errors: `PeerLost`, `Unauthenticated`, `IncompatiblePeer`."""
        self._channel = grpc.aio.insecure_channel(self.address, options=_channel_options(self._config))
        stub = worker_pb2_grpc.WorkerServiceStub(self._channel)
        hello = worker_pb2.SessionHello(router_boot_id=self._boot_id, protocol_version=PROTOCOL_VERSION)
        try:
            async with asyncio.timeout(self._config.connect_timeout_s):
                self._call = stub.Session(metadata=(("authorization", f"Bearer {self._secret}"),))
                await self._call.write(worker_pb2.RouterMessage(hello=hello))
                first = await self._call.read()
                if first is grpc.aio.EOF:
                    raise await self._ending()
        except TimeoutError:
            limit_s = self._config.connect_timeout_s
            raise PeerLost(f"worker at {self.address} did not say hello within {limit_s} s") from None
        except grpc.aio.AioRpcError as error:
            raise _as_error(self.address, error) from None
        except asyncio.InvalidStateError:  # written to a call that had ended
            raise await self._ending() from None
        identity = identity_from_proto(first, self.address)
        self._writer = asyncio.create_task(self._write(), name=f"write to {self.address}")
        return identity

    def send(self, message: worker_pb2.RouterMessage) -> None:
        """Queue a message. Never waits; a full queue means that the worker does not read, and ends the session."""
        try:
            self._outgoing.put_nowait(message)
        except asyncio.QueueFull:
            self.fail(f"{self._config.max_outgoing} messages wait to be read")

    def fail(self, reason: str) -> None:
        """End the session; `events` then raises `PeerLost` with this reason. Safe to repeat."""
        self._failure = self._failure or reason
        if self._call is not None:
            self._call.cancel()

    async def events(self) -> AsyncIterator[WorkerEvent]:
        """Everything the worker says, in order, until it raises a `ServingError`: a session never ends well."""
        assert self._call is not None
        while True:
            try:
                message = await self._call.read()
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not self._failure or (task is not None and task.cancelling()):
                    raise
                raise PeerLost(f"session to {self.address} given up: {self._failure}") from None
            except grpc.aio.AioRpcError as error:
                raise _as_error(self.address, error) from None
            if message is grpc.aio.EOF:
                raise await self._ending()
            yield event_from_proto(message)

    async def flush(self, timeout_s: float) -> None:
        """Let what is queued leave, for so long at most; only while `events` is being read."""
        if self._writer is not None and not self._writer.done():
            try:
                await asyncio.wait_for(self._outgoing.join(), timeout_s)
            except TimeoutError:
                pass  # the end of the session tells the worker the same

    async def close(self) -> None:
        """End it and free the connection. Safe to repeat."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        if self._call is not None:
            self._call.cancel()
        if self._channel is not None:
            await self._channel.close()

    async def _ending(self) -> ServingError:
        """The error that a stream which the worker closed stands for."""
        assert self._call is not None
        code, details = await self._call.code(), await self._call.details()
        kind = _REFUSALS.get(code, PeerLost)
        return kind(f"worker at {self.address} closed the session: {code.name} {details or ''}".rstrip())

    async def _write(self) -> None:
        assert self._call is not None
        try:
            while True:
                message = await self._outgoing.get()
                await self._call.write(message)
                self._outgoing.task_done()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            self.fail(f"cannot write: {type(error).__name__}")
