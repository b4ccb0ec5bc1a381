"""Errors as a gRPC status with google.rpc details."""

from __future__ import annotations

from typing import NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from pdserve.errors import ServingError, StatusCode
from router.grpc_front.conversion import slo_outcome

MAX_MESSAGE_CHARS = 1000
"""Of a status message; trailing metadata has 8 KiB for everything."""


async def abort_with(context: grpc.aio.ServicerContext, error: ServingError) -> NoReturn:
    """End the call with what the error says: its status, the field at fault, when to try again, whom to blame."""
    status = rpc_status.to_status(rich_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort raises")


def rich_status(error: ServingError) -> status_pb2.Status:
    message = error.message[:MAX_MESSAGE_CHARS]
    status = status_pb2.Status(code=code_pb2.Code.Value(error.status.name), message=message)
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=message)
        _attach(status, error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None or error.status is StatusCode.RESOURCE_EXHAUSTED:
        delay = Duration()
        delay.FromNanoseconds(round(1e9 * (1.0 if error.retry_after_s is None else error.retry_after_s)))
        _attach(status, error_details_pb2.RetryInfo(retry_delay=delay))
    if error.verdict is not None:
        _attach(status, slo_outcome(error.verdict))
    return status


def _attach(status: status_pb2.Status, detail: Message) -> None:
    packed = AnyMessage()
    packed.Pack(detail)
    status.details.append(packed)
