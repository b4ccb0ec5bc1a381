"""The tree of errors that a request can end with.

    ServingError
      RequestError        the caller's fault; never retried            400
        PromptTooLong, BadSampling, NotFound, AlreadyExists, Unauthenticated, PermissionDenied, Unimplemented
      CapacityError       try later or elsewhere                       429
        QueueFull, NoFreeBlocks
      HandoffError        the prompt may be computed again             503
        PeerLost, LeaseExpired, TransferCorrupt, NoWorker, Stopping
      DeadlineExceeded    the client's time is up                      504
      Cancelled           the client left or aborted                   499
      IncompatiblePeer    two workers can never talk                   409
      InvariantViolation  our bug                                      500

The class decides status, retry and metric; nobody parses text. A message names the number and the limit.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar

from pdserve.slo import Verdict


class StatusCode(Enum):
    """gRPC status names with the HTTP status that each maps to."""

    INVALID_ARGUMENT = 400
    UNAUTHENTICATED = 401
    PERMISSION_DENIED = 403
    NOT_FOUND = 404
    ALREADY_EXISTS = 409
    FAILED_PRECONDITION = 412
    RESOURCE_EXHAUSTED = 429
    CANCELLED = 499
    INTERNAL = 500
    UNIMPLEMENTED = 501
    UNAVAILABLE = 503
    DEADLINE_EXCEEDED = 504


class ServingError(Exception):
    """Base: a request ended without being served."""

    status: ClassVar[StatusCode] = StatusCode.INTERNAL

    def __init__(self, message: str, *, field: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field  # the request's field at fault, empty when none is
        self.retry_after_s = retry_after_s  # how long a client should wait before it tries again
        self.verdict: Verdict | None = None  # on the request's SLO, once the router has judged its end


class RequestError(ServingError):
    """The caller's fault."""

    status = StatusCode.INVALID_ARGUMENT


class PromptTooLong(RequestError):
    """The prompt does not fit the context or the pool."""


class BadSampling(RequestError):
    """A sampling parameter is out of range."""


class NotFound(RequestError):
    """Unknown model or request id."""

    status = StatusCode.NOT_FOUND


class AlreadyExists(RequestError):
    """The request id is running."""

    status = StatusCode.ALREADY_EXISTS


class Unauthenticated(RequestError):
    """No key, or a wrong one."""

    status = StatusCode.UNAUTHENTICATED


class PermissionDenied(RequestError):
    """The key may not do this."""

    status = StatusCode.PERMISSION_DENIED


class Unimplemented(RequestError):
    """Understood, not supported."""

    status = StatusCode.UNIMPLEMENTED


class CapacityError(ServingError):
    """Try later or elsewhere."""

    status = StatusCode.RESOURCE_EXHAUSTED


class QueueFull(CapacityError):
    """A bounded queue is full, or its predicted wait exceeds the deadline."""


class NoFreeBlocks(CapacityError):
    """The KV pool cannot hold it now."""


class HandoffError(ServingError):
    """The prompt may be computed again elsewhere."""

    status = StatusCode.UNAVAILABLE


class PeerLost(HandoffError):
    """A worker or the link to it is gone."""


class NoWorker(HandoffError):
    """No live worker for a role."""


class Stopping(HandoffError):
    """This router stops; another one may serve it."""


class LeaseExpired(HandoffError):
    """Blocks were held longer than their lease."""


class TransferCorrupt(HandoffError):
    """Digest, length, identity or generation of received KV is wrong."""


class DeadlineExceeded(ServingError):
    """The deadline passed."""

    status = StatusCode.DEADLINE_EXCEEDED


class Cancelled(ServingError):
    """The client left or aborted."""

    status = StatusCode.CANCELLED


class IncompatiblePeer(ServingError):
    """Layout or protocol differ: an operator's matter."""

    status = StatusCode.FAILED_PRECONDITION


class InvariantViolation(ServingError):
    """Our bug: the state is logged and the sequence or the worker ends."""

    status = StatusCode.INTERNAL


_BY_STATUS: dict[str, type[ServingError]] = {
    cls.status.name: cls
    for cls in (
        InvariantViolation, IncompatiblePeer, Cancelled, DeadlineExceeded, HandoffError, CapacityError,
        Unimplemented, PermissionDenied, Unauthenticated, AlreadyExists, NotFound, RequestError,
    )
}  # fmt: skip


_BY_REASON: dict[str, type[ServingError]] = {
    cls.__name__: cls for cls in (QueueFull, NoFreeBlocks, PeerLost, LeaseExpired, TransferCorrupt, PromptTooLong)
}


def error_from_status(status: str, message: str, reason: str = "") -> ServingError:
    """The error that a status name stands for, as it arrives from another process; `reason`: its class, if known."""
    exact = _BY_REASON.get(reason)
    if exact is not None and exact.status.name == status:
        return exact(message)
    return _BY_STATUS.get(status, ServingError)(message)
