"""The decode worker's end of a link that is measured: it drives."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from deploy.doctor.link_end import OPEN_TIMEOUT_S, REPEATS, LinkFigure, Probe, pair_of, reason
from deploy.doctor.link_wire import LinkWire
from kv_transfer.agreement import Agreement, agree, place_of
from kv_transfer.transports.interface import TargetChannel
from pdserve.errors import IncompatiblePeer, ServingError
from pdserve.kv_memory import private_memory
from pdserve.v1 import worker_pb2 as pb

SMALL_MOVES = 20
MOVE_TIMEOUT_S = 60.0


class LinkMeter:
    """Measures one link, from its receiving end."""

    def __init__(self, probe: Probe, source_id: str, wire: LinkWire) -> None:
        self._probe, self._source_id, self._wire = probe, source_id, wire
        self._figure = LinkFigure(source_id, probe.start.worker_id)
        self._tags = itertools.count(0, 2 * probe.start.num_blocks)
        self._epochs = itertools.count(1)

    async def measure(self, hello: Mapping[str, Any]) -> LinkFigure:
        """Open the best transport that opens, as two workers would, and move blocks."""
        own = asdict(self._figure)
        source_boot_id = bytes.fromhex(hello["source_boot_id"])
        said = pb.PairHello(**{**hello, "source_boot_id": source_boot_id, "source_worker_id": self._source_id})
        refused: dict[str, str] = {}
        while True:
            try:
                agreed = self._agree(said, set(refused))
            except IncompatiblePeer as error:
                return LinkFigure(**own | {"error": error.message, "refused": _told(refused)})
            own["wanted"] = own["wanted"] or agreed.transport
            try:
                channel = await self._open(agreed.transport, source_boot_id)
                break
            except (ServingError, OSError, RuntimeError, TimeoutError) as error:
                refused[agreed.transport] = reason(error)
                if not agreed.has_another:
                    return LinkFigure(**own | {"error": "; ".join(_told(refused)), "refused": _told(refused)})
        try:
            figures = await self._figures(channel)
        finally:
            await channel.close()
            await self._order(do="close")
        limit = await self._limit(agreed.transport)
        return LinkFigure(**own | figures | limit | {"transport": agreed.transport, "refused": _told(refused)})

    def _agree(self, hello: pb.PairHello, unusable: set[str]) -> Agreement:
        probe = self._probe
        return agree(
            probe.transports, place_of(probe.identity), hello, unusable, peer_access=probe.reaches(hello.gpu_uuid)
        )

    async def _open(self, transport: str, source_boot_id: bytes) -> TargetChannel:
        probe = self._probe
        order = {"do": "open", "transport": transport, "epoch": next(self._epochs), "nonce": secrets.token_hex(16),
                 "source": source_boot_id.hex(), "target": probe.identity.boot_id.hex(),
                 "block_bytes": probe.start.block_bytes}  # fmt: skip
        rendezvous = self._wire.new_rendezvous()
        self._wire.tell(order)
        await self._answer()
        ours, theirs = await asyncio.gather(
            asyncio.wait_for(
                probe.transports[transport].open_target(pair_of(order), rendezvous, probe.memory), OPEN_TIMEOUT_S
            ),
            self._answer(),
            return_exceptions=True,
        )
        if isinstance(ours, BaseException):
            raise ours
        if isinstance(theirs, BaseException):
            await ours.close()
            raise theirs
        channel: TargetChannel = ours
        return channel

    async def _figures(self, channel: TargetChannel) -> dict[str, float]:
        total = self._probe.start.num_blocks
        await self._move(channel, total)  # both ends' memory is touched, threads are started
        whole = [await self._move(channel, total) for _ in range(REPEATS)]
        small = sorted([await self._move(channel, 1) for _ in range(SMALL_MOVES)])
        num_bytes = total * self._probe.start.block_bytes
        return {"bytes_per_second": num_bytes / min(whole), "latency_s": small[len(small) // 2]}

    async def _move(self, channel: TargetChannel, count: int) -> float:
        """Seconds from the first word about the blocks until they are verified in place."""
        tag = next(self._tags)
        moves = self._probe.moves(count, tag)
        began = time.perf_counter()
        receipt = channel.post(1, moves)
        if channel.pushed:
            self._wire.tell({"do": "send", "transfer": 1, "count": count, "tag": tag})
        await asyncio.wait_for(receipt.wait(), MOVE_TIMEOUT_S)
        took = time.perf_counter() - began
        if channel.pushed:
            await self._answer()
        return took

    async def _limit(self, transport: str) -> dict[str, Any]:
        """What nothing that moves these bytes here can beat by much."""
        match transport:
            case "shm":
                return {"limit": "memcpy", "limit_bytes_per_second": self._copy_rate()}
            case "gloo":
                return {"limit": "TCP", "limit_bytes_per_second": await self._tcp_rate()}
            case _:
                return {}

    def _copy_rate(self) -> float:
        target = memoryview(private_memory(len(self._probe.memory.data)))
        best = float("inf")
        for _ in range(REPEATS + 1):  # the first takes the memory from the system
            began = time.perf_counter()
            target[:] = self._probe.memory.data
            best = min(best, time.perf_counter() - began)
        return len(target) / best

    async def _tcp_rate(self) -> float:
        self._wire.tell({"do": "tcp"})
        port = (await self._answer())["port"]
        connected = await asyncio.to_thread(socket.create_connection, (self._probe.start.host, port), OPEN_TIMEOUT_S)
        best = float("inf")
        with connected:
            for _ in range(REPEATS):
                began = time.perf_counter()
                await asyncio.to_thread(_receive_all, connected, self._probe.memory.data)
                best = min(best, time.perf_counter() - began)
                connected.sendall(b".")
        await self._answer()
        return len(self._probe.memory.data) / best

    async def _order(self, **order: Any) -> Mapping[str, Any]:
        self._wire.tell(order)
        return await self._answer()

    async def _answer(self) -> Mapping[str, Any]:
        said = await self._wire.hear()
        if "failed" in said:
            raise RuntimeError(said["failed"])
        return said


def _receive_all(connected: socket.socket, memory: memoryview) -> None:
    at = 0
    while at < len(memory):
        count = connected.recv_into(memory[at:])
        if count == 0:
            raise ConnectionError("the other end is gone")
        at += count


def _told(refused: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{name}: {why}" for name, why in refused.items())
