"""What the two ends of a link say to each other while it is measured: lines of JSON over an inherited socket.

A line with "key" is a rendezvous value; every other is an order or its answer, one at a time.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping
from typing import Any, Self

from kv_transfer.rendezvous import StreamRendezvous
from pdserve.errors import PeerLost

HEAR_TIMEOUT_S = 60.0
MAX_LINE_BYTES = 1 << 20


class LinkWire:
    """One end. Owned by the loop that it was connected on."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._loop = asyncio.get_running_loop()
        self._said: asyncio.Queue[Mapping[str, Any] | None] = asyncio.Queue()
        self.rendezvous = self.new_rendezvous()
        self._task = asyncio.create_task(self._read())

    @classmethod
    async def over(cls, fd: int) -> Self:
        connected = socket.socket(fileno=fd)
        connected.setblocking(False)
        return cls(*await asyncio.open_unix_connection(sock=connected, limit=MAX_LINE_BYTES))

    def new_rendezvous(self) -> StreamRendezvous:
        """For another attempt to meet: values of the last one are forgotten. Both ends call it before they open."""

        def send(key: str, value: bytes) -> None:
            self._loop.call_soon_threadsafe(self.tell, {"key": key, "value": value.hex()})

        self.rendezvous = StreamRendezvous(send)
        return self.rendezvous

    def tell(self, message: Mapping[str, Any]) -> None:
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def hear(self, timeout_s: float = HEAR_TIMEOUT_S) -> Mapping[str, Any]:
        """The next order or answer; PeerLost when none comes."""
        try:
            message = await asyncio.wait_for(self._said.get(), timeout_s)
        except TimeoutError:
            raise PeerLost(f"the other end said nothing for {timeout_s:g} s") from None
        if message is None:
            raise PeerLost("the other end is gone")
        return message

    async def _read(self) -> None:
        try:
            async for line in self._reader:
                message = json.loads(line)
                if "key" in message:
                    self.rendezvous.deliver(message["key"], bytes.fromhex(message["value"]))
                else:
                    self._said.put_nowait(message)
        except (OSError, ValueError):
            pass  # a peer that was killed: an end like any other
        self._said.put_nowait(None)
        self.rendezvous.close()
