"""How fast each transport moves KV blocks between two processes, beside a plain copy and a bare gloo send.

    python -m bench.transport [--total-bytes N] [--block-bytes N ...] [--repeats N]

Every figure is the best of the repeats, in one run, so that the ratios mean something on a machine that is shared. Two
placements: "scattered", every block somewhere else on both sides, and "runs", as a pool gives out what was freed
together. The peers: one memcpy of all bytes, and a bare gloo send of a message per block. Block sizes: 64 and 128 KiB
(a model of 28 million parameters with 8 and 16 tokens per block), 1,792 KiB (the shape of Qwen3-0.6B) and 2 MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from bench.arguments import positive
from kv_transfer.transports import (
    BlockMove,
    PairInfo,
    SharedMemoryTransport,
    SourceChannel,
    Transport,
)
from kv_transfer.transports.framing import give_tags
from kv_transfer.transports.gloo import GlooTransport
from kv_transfer.transports.gloo_link import SOURCE_RANK, TARGET_RANK, GlooDevice, GlooLink
from pdserve.errors import PeerLost
from pdserve.kv_memory import KvMemory

TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result."""

    what: str
    placement: str  # of the blocks: scattered, runs, or none
    block_bytes: int
    seconds: float
    gb_per_s: float


class Wire:
    """JSON lines to the other process: orders, answers and rendezvous values."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._changed = threading.Condition()
        self._values: dict[str, Any] = {}
        threading.Thread(target=self._read, daemon=True).start()

    def tell(self, key: str, value: Any) -> None:
        self._socket.sendall(json.dumps([key, value]).encode() + b"\n")

    def hear(self, key: str, timeout_s: float = 120.0) -> Any:
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._values or "" in self._values, timeout_s):
                raise PeerLost(f"no {key} within {timeout_s:g} s")
            if key not in self._values:
                raise PeerLost("the other process is gone")
            return self._values.pop(key)

    def set(self, key: str, value: bytes) -> None:
        self.tell(f"meet {key}", value.hex())

    def get(self, key: str, timeout_s: float) -> bytes:
        return bytes.fromhex(self.hear(f"meet {key}", timeout_s))

    def _read(self) -> None:
        with self._socket.makefile("r") as lines:
            for line in lines:
                key, value = json.loads(line)
                with self._changed:
                    self._values[key] = value
                    self._changed.notify_all()
        with self._changed:
            self._values[""] = None
            self._changed.notify_all()


GATES = {
    "shared memory": ("memcpy", 0.60, 0.85),
    "shared memory, digest": ("memcpy", 0.45, 0.85),
    "gloo": ("bare gloo", 0.80, 0.90),
    "gloo, digest": ("bare gloo", 0.70, 0.90),
}
"""Per transport: its peer, the share of the peer's speed that it must reach, and where we want it."""


def transport_named(name: str) -> Transport:
    digests = name.endswith("digest")
    if name.startswith("gloo"):
        return GlooTransport(digests=digests, timeout_s=TIMEOUT_S)
    return SharedMemoryTransport(digests=digests, timeout_s=TIMEOUT_S)


def pair_info(block_bytes: int) -> PairInfo:
    return PairInfo(b"s" * 16, b"t" * 16, 1, b"n" * 16, block_bytes)


def filled(num_blocks: int, block_bytes: int) -> KvMemory:
    memory = KvMemory(num_blocks, block_bytes)
    memory.data[:] = secrets.token_bytes(1 << 16) * (len(memory.data) >> 16)
    return memory


def moves_between(num_blocks: int, block_bytes: int, tags_from: int, scattered: bool) -> list[BlockMove]:
    """Every block of one pool to a place in the other, the same on both sides for the same arguments."""
    sources = list(range(num_blocks))
    targets = list(range(num_blocks))
    if scattered:
        random.Random(tags_from).shuffle(sources)
        random.Random(tags_from + 1).shuffle(targets)
    tags = give_tags(sources, targets, block_bytes, itertools.count(tags_from, 2))
    return [BlockMove(i, tag, s, 0, t) for i, (tag, s, t) in enumerate(zip(tags, sources, targets, strict=True))]


def pool_tensor(memory: KvMemory) -> torch.Tensor:
    return torch.frombuffer(memory.data, dtype=torch.uint8).view(memory.num_blocks, memory.block_bytes)


def bare_gloo(link: GlooLink, memory: KvMemory, rank: int, moves: list[BlockMove]) -> None:
    """One message per block from and to the same places, and one answer at the end: no descriptors, no digests."""
    pool = pool_tensor(memory)
    tags_from = moves[0].tag
    if rank == SOURCE_RANK:
        works = [link.send(pool[move.source_block], tags_from + i) for i, move in enumerate(moves)]
    else:
        works = [link.receive(pool[move.target_block], tags_from + i) for i, move in enumerate(moves)]
    answer = torch.zeros(1, dtype=torch.uint8)
    if rank == TARGET_RANK:
        for work in works:
            link.finish(work)
        link.finish(link.send(answer, tags_from + len(works)))
    else:
        link.finish(link.receive(answer, tags_from + len(works)))


async def be_source(wire: Wire) -> None:
    """The other process: does what it is told until the wire ends."""
    memory: KvMemory | None = None
    channel: SourceChannel | None = None
    link: GlooLink | None = None
    moves: list[BlockMove] = []
    device = GlooDevice("127.0.0.1")
    while True:
        order = await asyncio.to_thread(wire.hear, "order")
        match order["do"]:
            case "fill":
                memory = await asyncio.to_thread(filled, order["num_blocks"], order["block_bytes"])
            case "open" if memory is not None:
                info = pair_info(memory.block_bytes)
                if order["what"] == "bare gloo":
                    link = await asyncio.to_thread(GlooLink, info, SOURCE_RANK, wire, device.get(), TIMEOUT_S)
                else:
                    channel = await transport_named(order["what"]).open_source(info, wire, memory)
            case "name" if memory is not None:
                moves = moves_between(memory.num_blocks, memory.block_bytes, order["tag"], order["scattered"])
            case "move" if memory is not None:
                if link is not None:
                    await asyncio.to_thread(bare_gloo, link, memory, SOURCE_RANK, moves)
                elif channel is not None:
                    await channel.send(1, moves)
            case "close":
                if channel is not None:
                    await channel.close()
                if link is not None:
                    await asyncio.to_thread(link.close)
                channel = link = None
        wire.tell("did", order["do"])


class Bench:
    """This process: the target."""

    def __init__(self, wire: Wire, repeats: int) -> None:
        self.wire = wire
        self.repeats = repeats
        self.figures: list[Figure] = []

    async def order(self, do: str, **rest: Any) -> None:
        self.wire.tell("order", {"do": do, **rest})

    async def done(self) -> None:
        await asyncio.to_thread(self.wire.hear, "did")

    def record(self, what: str, memory: KvMemory, seconds: list[float], placement: str = "") -> None:
        best = min(seconds)
        self.figures.append(Figure(what, placement, memory.block_bytes, best, len(memory.data) / best / 1e9))

    async def block_size(self, total_bytes: int, block_bytes: int) -> None:
        num_blocks = total_bytes // block_bytes
        memory, local = filled(num_blocks, block_bytes), filled(num_blocks, block_bytes)
        await self.order("fill", num_blocks=num_blocks, block_bytes=block_bytes)
        await self.done()
        a, b = np.frombuffer(local.data, np.uint8), np.frombuffer(memory.data, np.uint8)
        self.record("memcpy", memory, [timed(lambda: np.copyto(b, a)) for _ in range(self.repeats)])
        await self.bare(memory)
        for what in GATES:
            await self.channel(what, memory)

    async def bare(self, memory: KvMemory) -> None:
        await self.order("open", what="bare gloo")
        device = GlooDevice("127.0.0.1")
        link = await asyncio.to_thread(
            GlooLink, pair_info(memory.block_bytes), TARGET_RANK, self.wire, device.get(), TIMEOUT_S
        )
        await self.done()
        tags = itertools.count(0, 2 * memory.num_blocks)
        for scattered in (True, False):
            seconds = []
            for tag in itertools.islice(tags, self.repeats):
                moves = moves_between(memory.num_blocks, memory.block_bytes, tag, scattered)
                await self.order("name", tag=tag, scattered=scattered)
                await self.done()
                began = time.perf_counter()
                await self.order("move")
                await asyncio.to_thread(bare_gloo, link, memory, TARGET_RANK, moves)
                seconds.append(time.perf_counter() - began)
                await self.done()
            self.record("bare gloo", memory, seconds, "scattered" if scattered else "runs")
        await self.order("close")
        await asyncio.to_thread(link.close)
        await self.done()

    async def channel(self, what: str, memory: KvMemory) -> None:
        await self.order("open", what=what)
        channel = await transport_named(what).open_target(pair_info(memory.block_bytes), self.wire, memory)
        await self.done()
        tags = itertools.count(0, 2 * memory.num_blocks)
        for scattered in (True, False):
            seconds = []
            for tag in itertools.islice(tags, self.repeats):
                moves = moves_between(memory.num_blocks, memory.block_bytes, tag, scattered)
                if channel.pushed:
                    await self.order("name", tag=tag, scattered=scattered)
                    await self.done()
                began = time.perf_counter()
                receipt = channel.post(1, moves)
                if channel.pushed:
                    await self.order("move")
                await receipt.wait()
                seconds.append(time.perf_counter() - began)
                if channel.pushed:
                    await self.done()
            self.record(what, memory, seconds, "scattered" if scattered else "runs")
        await self.order("close")
        await channel.close()
        await self.done()


def timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def table(figures: list[Figure]) -> str:
    lines = ["| block | what | blocks lie | GB/s | of memcpy | of bare gloo | gate |", "|---|---|---|---|---|---|---|"]
    for figure in figures:
        speeds = {(f.what, f.placement): f.gb_per_s for f in figures if f.block_bytes == figure.block_bytes}
        peers = {"memcpy": ("memcpy", ""), "bare gloo": ("bare gloo", figure.placement or "runs")}
        shares = {peer: figure.gb_per_s / speeds[key] for peer, key in peers.items()}
        numbers = " | ".join(f"{number:.2f}" for number in (figure.gb_per_s, *shares.values()))
        row = f"{figure.block_bytes >> 10:,} KiB | {figure.what} | {figure.placement} | {numbers}"
        lines.append(f"| {row} | {judged(figure.what, shares)} |")
    return "\n".join(lines)


def judged(what: str, shares: dict[str, float]) -> str:
    """How a transport stands to its gate; nothing for the peers."""
    if what not in GATES:
        return ""
    peer, gate, stretch = GATES[what]
    share = shares[peer]
    return "stretch" if share >= stretch else "met" if share >= gate else f"below {gate:.0%} of {peer}"


async def run(total_bytes: int, block_sizes: list[int], repeats: int) -> list[Figure]:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "bench.transport", "--source-fd", str(theirs.fileno())]
    child = await asyncio.to_thread(subprocess.Popen, command, pass_fds=[theirs.fileno()])
    theirs.close()
    bench = Bench(Wire(ours), repeats)
    try:
        for block_bytes in block_sizes:
            await bench.block_size(total_bytes, block_bytes)
    finally:
        child.kill()
        await asyncio.to_thread(child.wait)
    return bench.figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--total-bytes", type=positive, default=128 << 20)
    parser.add_argument("--block-bytes", type=positive, nargs="+", default=[64 << 10, 128 << 10, 1792 << 10, 2 << 20])
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object per figure instead of a table")
    parser.add_argument("--source-fd", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.source_fd is not None:
        asyncio.run(be_source(Wire(socket.socket(fileno=arguments.source_fd))))
        return
    figures = asyncio.run(run(arguments.total_bytes, arguments.block_bytes, arguments.repeats))
    print("\n".join(json.dumps(asdict(f)) for f in figures) if arguments.json else table(figures))


if __name__ == "__main__":
    main()
