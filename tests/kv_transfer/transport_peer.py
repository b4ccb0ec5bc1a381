"""One end of a pair in a process of its own, steered over an inherited socket: what the process tests kill and stop.

Lines of JSON both ways. In: fill, open, pause_at, go, post, send, close, set (rendezvous).
Out: ready, filled, opened, reached, done, closed, set.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import signal
import socket
import struct
import sys
import threading
from typing import Any

import numpy as np

from kv_transfer.transports import BlockMove, Faults, PairInfo, SharedMemoryTransport
from kv_transfer.transports.gloo import GlooTransport
from pdserve.errors import PeerLost, ServingError
from pdserve.kv_memory import KvMemory


class Line:
    """Messages over a socket; rendezvous values are taken out of the stream and kept."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._write = threading.Lock()
        self._changed = threading.Condition()
        self._values: dict[str, bytes] = {}
        self.messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def tell(self, **message: Any) -> None:
        with self._write:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def hear(self, timeout_s: float = 30.0) -> dict[str, Any]:
        message = self.messages.get(timeout=timeout_s)
        if message is None:
            raise EOFError
        return message

    def set(self, key: str, value: bytes) -> None:
        self.tell(op="set", key=key, value=value.hex())

    def get(self, key: str, timeout_s: float) -> bytes:
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._values, timeout_s):
                raise PeerLost(f"nothing under {key} within {timeout_s:g} s")
            return self._values.pop(key)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _read(self) -> None:
        # A peer that is killed with something unread resets the connection, which is an end like any other.
        with self._socket.makefile("r") as lines, contextlib.suppress(ConnectionResetError):
            for line in lines:
                message = json.loads(line)
                if message["op"] != "set":
                    self.messages.put(message)
                    continue
                with self._changed:
                    self._values[message["key"]] = bytes.fromhex(message["value"])
                    self._changed.notify_all()
        self.messages.put(None)


def pool(num_blocks: int, block_bytes: int, seed: int) -> KvMemory:
    """Reproducible bytes; block i is of generation i + 1."""
    memory = KvMemory(num_blocks, block_bytes)
    memory.data[:] = np.random.default_rng(seed).bytes(len(memory.data))
    for block in range(num_blocks):
        memory.generations[block] = block + 1
    return memory


def pair_info(block_bytes: int, epoch: int) -> PairInfo:
    return PairInfo(b"source of test..", b"target of test..", epoch, epoch.to_bytes(16, "big"), block_bytes)


def make(name: str, timeout_s: float, faults: Faults | None = None) -> Any:
    faults = faults or Faults()
    if name == "gloo":
        return GlooTransport(timeout_s=timeout_s, faults=faults)
    return SharedMemoryTransport(digests=name.endswith("digests"), timeout_s=timeout_s, faults=faults)


class Peer:
    """Does what it is told."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.hashed = 0
        self.pause_at = -1
        self.resumed = threading.Event()

    def after_digest(self, payload: memoryview) -> None:
        """Tells when the block to pause at is about to leave, and holds it until told to go on."""
        self.hashed += 1
        if self.hashed == self.pause_at:
            self.line.tell(op="reached")
            self.resumed.wait()

    async def run(self) -> None:
        tasks = []
        channel: Any = None
        memory: Any = None
        self.line.tell(op="ready")
        while True:
            order = await asyncio.to_thread(self.line.hear, 120.0)
            if order["op"] == "fill":
                memory = pool(order["num_blocks"], order["block_bytes"], order["seed"])
                self.line.tell(op="filled")
            elif order["op"] == "open":
                transport = make(order["transport"], order["timeout_s"], Faults(after_digest=self.after_digest))
                info = pair_info(order["block_bytes"], order["epoch"])
                opener = transport.open_source if order["role"] == "source" else transport.open_target
                channel = await opener(info, self.line, memory)
                self.line.tell(op="opened")
            elif order["op"] == "pause_at":
                self.hashed, self.pause_at = 0, order["block"]
                if order["hold"]:
                    self.resumed.clear()
                else:
                    self.resumed.set()
            elif order["op"] in ("send", "post"):
                tasks.append(asyncio.create_task(self.move(channel, order)))
            elif order["op"] == "go":
                self.resumed.set()
            elif order["op"] == "close":
                await channel.close()
                await asyncio.gather(*tasks)
                self.line.tell(op="closed")

    async def move(self, channel: Any, order: dict[str, Any]) -> None:
        moves = [BlockMove(*move) for move in order["moves"]]
        error = ""
        try:
            if order["op"] == "send":
                await channel.send(1, moves)
            else:
                await channel.post(1, moves).wait()
        except ServingError as refused:
            error = type(refused).__name__
        self.line.tell(op="done", error=error)


def serve_forks(nursery: socket.socket) -> None:
    """Import once, then give every socket that arrives a process of its own; answers with its id."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        _, fds, _, _ = socket.recv_fds(nursery, 1, 1)
        if not fds:
            return
        pid = os.fork()  # this process has never started a thread
        if pid == 0:
            nursery.close()
            try:
                asyncio.run(Peer(Line(socket.socket(fileno=fds[0]))).run())
            except EOFError:
                pass  # the test is over
            return
        os.close(fds[0])
        nursery.sendall(struct.pack("<i", pid))


if __name__ == "__main__":
    serve_forks(socket.socket(fileno=int(sys.argv[1])))
