"""What a worker has to say to one router."""

from __future__ import annotations

import asyncio
import logging

from pdserve.v1 import worker_pb2 as pb

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
