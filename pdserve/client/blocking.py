"""The client whose calls block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from types import TracebackType

import grpc

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


class Client:
    """Blocking calls; safe to share between threads."""

    def __init__(self, address: str, *, api_key: str | None = None, tls: Tls | None = None) -> None:
        """`tls`: how, where the server speaks it. Raises OSError where its files cannot be read."""
        self._channel = (
            grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
            if tls is None
            else grpc.secure_channel(address, tls.channel_credentials(), options=CHANNEL_OPTIONS)
        )
        self._stub = rpc.InferenceServiceStub(self._channel)
        self._metadata = metadata_of(api_key)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def stream(
        self, prompt: str | Sequence[int], options: GenerateOptions = GenerateOptions()
    ) -> Iterator[Chunk | Completion]:
        """Chunks, then one Completion; leaving early cancels the request. Raises ServingError."""
        call = self._stub.Generate(request_message(prompt, options), timeout=options.timeout_s, metadata=self._metadata)
        try:
            for response in call:
                yield event_of(response)
        except grpc.RpcError as error:
            raise error_of(error) from None
        finally:
            call.cancel()

    def generate(self, prompt: str | Sequence[int], options: GenerateOptions = GenerateOptions()) -> Completion:
        """The whole completion. Raises ServingError."""
        with closing(self.stream(prompt, options)) as events:  # type: ignore[type-var]
            for event in events:
                if isinstance(event, Completion):
                    return event
        raise incomplete()

    def server_info(self, timeout_s: float = 10.0) -> ServerInfo:
        """What is served and by whom. Raises ServingError."""
        try:
            return server_info_of(
                self._stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=timeout_s, metadata=self._metadata)
            )
        except grpc.RpcError as error:
            raise error_of(error) from None

    def abort(self, request_id: str, tenant: str = "", timeout_s: float = 10.0) -> None:
        """Cancel a running request; raises NotFound when there is none."""
        message = pb.AbortRequest(request_id=request_id, tenant=tenant)
        try:
            self._stub.Abort(message, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_of(error) from None

    def close(self) -> None:
        self._channel.close()
