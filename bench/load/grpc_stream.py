"""The same over gRPC, to our own InferenceService: bytes in, times out."""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from itertools import cycle, pairwise
from typing import Any

import grpc
import grpc.aio
from grpc_status import rpc_status

from bench.load.result import Answer, BadAnswer, Outcome
from pdserve import wire
from pdserve.slo import Slo
from pdserve.tls import Tls
from pdserve.v1 import inference_pb2 as pb

GENERATE = "/pdserve.v1.InferenceService/Generate"
NUM_CHANNELS = 4  # one connection carries many streams, but each has one window of flow control
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # else all channels would share one connection
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_retries", 0),
]
OUTCOMES = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: Outcome.REJECTED,
    grpc.StatusCode.DEADLINE_EXCEEDED: Outcome.TIMEOUT,
}


class GrpcPool:
    """A few channels in turn."""

    def __init__(self, address: str, api_key: str | None = None, tls: Tls | None = None) -> None:
        self._channels = [
            grpc.aio.insecure_channel(address, options=OPTIONS)
            if tls is None
            else grpc.aio.secure_channel(address, tls.channel_credentials(), options=OPTIONS)
            for _ in range(NUM_CHANNELS)
        ]
        calls = [one.unary_stream(GENERATE, request_serializer=None, response_deserializer=None)
                 for one in self._channels]  # fmt: skip
        self._calls: cycle[Any] = cycle(calls)
        self._metadata = () if api_key is None else (("authorization", f"Bearer {api_key}"),)

    async def ask(self, request: bytes) -> Answer:
        """Raises BadAnswer; leaving early cancels the call."""
        times, complete = array("d"), None
        call = next(self._calls)(request, metadata=self._metadata, wait_for_ready=False)
        try:
            async for raw in call:
                now_s = time.perf_counter()
                response = pb.GenerateResponse.FromString(raw)
                if response.HasField("complete"):
                    complete = response.complete
                elif response.chunk.token_ids:
                    times.append(now_s)
        except grpc.aio.AioRpcError as error:
            message = f"{error.code().name}: {error.details()}"
            raise BadAnswer(message, OUTCOMES.get(error.code(), Outcome.FAILED), _blame_of(error)) from None
        finally:
            call.cancel()
        if complete is None or not times:
            raise BadAnswer("the stream ended without tokens or without its last message")
        gaps_s = array("d", (after - before for before, after in pairwise(times)))
        blame = wire.verdict_from_proto(complete.slo).blame.value
        usage = complete.usage
        ids = tuple(complete.token_ids)
        return Answer(times[0], times[-1], usage.completion_tokens, gaps_s, usage.cached_tokens, ids, blame)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


def _blame_of(error: grpc.aio.AioRpcError) -> str | None:
    """The server's verdict, among the details of its status."""
    status, slo = rpc_status.from_call(error), pb.SloOutcome()
    if status is None or not any(detail.Unpack(slo) for detail in status.details):
        return None
    return wire.verdict_from_proto(slo).blame.value


def grpc_request(
    model: str, prompt: Sequence[int] | str, num_tokens: int, slo: Slo | None, tenant: str, exact: bool
) -> bytes:
    """One greedy request; `exact`: of num_tokens tokens, whatever the model would say."""
    message = pb.GenerateRequest(
        model=model, max_tokens=num_tokens, ignore_eos=exact, min_tokens=num_tokens if exact else 0, tenant=tenant
    )
    if isinstance(prompt, str):
        message.text = prompt
    else:
        message.token_ids.ids.extend(prompt)
    if slo is not None:
        slo_class = "" if slo.slo_class == "default" else slo.slo_class
        message.slo.CopyFrom(pb.Slo(ttft_s=slo.ttft_s, tpot_s=slo.tpot_s, **{"class": slo_class}))
    return message.SerializeToString()
