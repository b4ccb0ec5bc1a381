"""The client for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from types import TracebackType

import grpc.aio

from pdserve.client.answers import Chunk, Completion, ServerInfo
from pdserve.client.messages import (
    CHANNEL_OPTIONS,
    error_of,
    event_of,
    incomplete,
    metadata_of,
    request_message,
    server_info_of,
)
from pdserve.client.options import GenerateOptions
from pdserve.tls import Tls
from pdserve.v1 import inference_pb2 as pb
from pdserve.v1 import inference_pb2_grpc as rpc


class AsyncClient:
    """What `Client` does, for asyncio; belongs to one event loop."""

    def __init__(self, address: str, *, api_key: str | None = None, tls: Tls | None = None) -> None:
        """`tls`: how, where the server speaks it. Raises OSError where its files cannot be read."""
        self._channel = (
            grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
            if tls is None
            else grpc.aio.secure_channel(address, tls.channel_credentials(), options=CHANNEL_OPTIONS)
        )
        self._stub = rpc.InferenceServiceStub(self._channel)
        self._metadata = metadata_of(api_key)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def stream(
        self, prompt: str | Sequence[int], options: GenerateOptions = GenerateOptions()
    ) -> AsyncIterator[Chunk | Completion]:
        """Chunks, then one Completion; leaving early cancels the request. Raises ServingError."""
        call = self._stub.Generate(request_message(prompt, options), timeout=options.timeout_s, metadata=self._metadata)
        try:
            async for response in call:
                yield event_of(response)
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from None
        finally:
            call.cancel()

    async def generate(self, prompt: str | Sequence[int], options: GenerateOptions = GenerateOptions()) -> Completion:
        """The whole completion. Raises ServingError."""
        async with aclosing(self.stream(prompt, options)) as events:  # type: ignore[type-var]
            async for event in events:
                if isinstance(event, Completion):
                    return event
        raise incomplete()

    async def server_info(self, timeout_s: float = 10.0) -> ServerInfo:
        """What is served and by whom. Raises ServingError."""
        call = self._stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=timeout_s, metadata=self._metadata)
        try:
            return server_info_of(await call)
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from None

    async def abort(self, request_id: str, tenant: str = "", timeout_s: float = 10.0) -> None:
        """Cancel a running request; raises NotFound when there is none."""
        message = pb.AbortRequest(request_id=request_id, tenant=tenant)
        try:
            await self._stub.Abort(message, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from None

    async def close(self) -> None:
        await self._channel.close()
