"""What a worker has to say to one router."""

from __future__ import annotations

import asyncio
import logging

from kv_transfer.notices import Committed
from pdserve.errors import ServingError
from pdserve.ids import SequenceKey
from pdserve.v1 import worker_pb2 as pb
from pdserve.wire import key_to_proto

log = logging.getLogger(__name__)

MAX_MESSAGES = 65536


class Outbox:
    """Messages to one router, bounded: a router that far behind is lost."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[pb.WorkerMessage | None] = asyncio.Queue()
        self.closed = False

    def put(self, message: pb.WorkerMessage) -> None:
        if self.closed:
            return
        if self.queue.qsize() >= MAX_MESSAGES:
            log.error("router is %d messages behind: session closed", MAX_MESSAGES)
            self.close()
            return
        self.queue.put_nowait(message)

    def close(self) -> None:
        self.closed = True
        self.queue.put_nowait(None)

    def tell_failed(self, key: SequenceKey, error: ServingError) -> None:
        failed = pb.SequenceFailed(
            key=key_to_proto(key), status=error.status.name, message=error.message, reason=type(error).__name__
        )
        self.put(pb.WorkerMessage(failed=failed))

    def tell_reserved(self, key: SequenceKey) -> None:
        """This worker has room for a prompt's KV."""
        event = pb.HandoffEvent(key=key_to_proto(key), progress=pb.HANDOFF_PROGRESS_RESERVED)
        self.put(pb.WorkerMessage(handoff=event))

    def tell_committed(self, notice: Committed) -> None:
        """This worker owns the sequence."""
        event = pb.HandoffEvent(
            key=key_to_proto(notice.key), progress=pb.HANDOFF_PROGRESS_COMMITTED, bytes_moved=notice.bytes_moved,
            blocks_skipped=notice.blocks_skipped, transfer_s=notice.transfer_s, busy_s=notice.busy_s,
            transport=notice.transport,
        )  # fmt: skip
        self.put(pb.WorkerMessage(handoff=event))

    def tell_freed(self, key: SequenceKey) -> None:
        """The other worker owns the sequence, nothing of it is left here."""
        event = pb.HandoffEvent(key=key_to_proto(key), progress=pb.HANDOFF_PROGRESS_FREED)
        self.put(pb.WorkerMessage(handoff=event))
