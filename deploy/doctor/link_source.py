"""The prefill worker's end of a link that is measured: does what the other end says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from typing import Any

from deploy.doctor.link_end import OPEN_TIMEOUT_S, REPEATS, Probe, pair_of, reason
from deploy.doctor.link_wire import LinkWire
from kv_transfer.transports.interface import SourceChannel
from pdserve.errors import ServingError

IDLE_TIMEOUT_S = 3600.0  # all other links may be measured first


async def serve_link(probe: Probe, wire: LinkWire) -> None:
    """Do what the other end says until it leaves."""
    wire.tell(probe.hello())
    channel: SourceChannel | None = None
    with contextlib.suppress(ServingError):
        while True:
            order = await wire.hear(IDLE_TIMEOUT_S)
            try:
                match order["do"]:
                    case "open":
                        channel = await _open_source(probe, wire, order)
                    case "send" if channel is not None:
                        await channel.send(order["transfer"], probe.moves(order["count"], order["tag"]))
                    case "close" if channel is not None:
                        await channel.close()
                        channel = None
                    case "tcp":
                        await _send_tcp(probe, wire)
                wire.tell({"done": order["do"]})
            except (ServingError, OSError, RuntimeError) as error:
                wire.tell({"failed": reason(error)})
    if channel is not None:
        await channel.close()


async def _open_source(probe: Probe, wire: LinkWire, order: Mapping[str, Any]) -> SourceChannel:
    rendezvous = wire.new_rendezvous()
    wire.tell({"ready": True})
    transport = probe.transports[order["transport"]]
    return await asyncio.wait_for(transport.open_source(pair_of(order), rendezvous, probe.memory), OPEN_TIMEOUT_S)


async def _send_tcp(probe: Probe, wire: LinkWire) -> None:
    """The whole pool through one plain connection."""
    with socket.create_server((probe.start.host, 0)) as listener:
        wire.tell({"port": listener.getsockname()[1]})
        listener.settimeout(OPEN_TIMEOUT_S)
        connected, _ = await asyncio.to_thread(listener.accept)
    with connected:
        for _ in range(REPEATS):
            await asyncio.to_thread(connected.sendall, probe.memory.data)
            await asyncio.to_thread(connected.recv, 1)
