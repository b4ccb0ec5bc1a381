"""The Unix socket between two workers on one host: passes the source's pool, then tells each end that the other lives.

    source                                     target
      listen on a random abstract name
      name, 128-bit token  ── rendezvous ──>     connect
      same user? token right?  <── token ──
      greeting + descriptor of the pool  ────>   same user? this pair? map it read-only
      ...                  <── questions ──      digests of some blocks (only with digests on)
      descriptors          ──────────────────>

Packets keep their bounds (SOCK_SEQPACKET). Whoever reads end-of-file has lost the peer: the kernel closes a killed
process's sockets at once. No name in a file system, so nothing is left behind.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kv_transfer.transports.background import start_thread
from kv_transfer.transports.interface import PairInfo, Rendezvous
from pdserve.errors import IncompatiblePeer, PeerLost
from pdserve.kv_memory import KvMemory, MappedKvMemory

MAX_PACKET_BYTES = 32 << 10
_KEY = "shared-memory"
_TOKEN_BYTES = 16
_GREETING = struct.Struct("<4s4x16sQQQ")  # magic, nonce, epoch, blocks in the pool, bytes per block
_MAGIC = b"PDSM"
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_TIME = struct.Struct("@ll")


class PoolLink:
    """A connected socket and its reader thread, on which packets go to `receive` and the end of them to `lost`."""

    def __init__(self, connected: socket.socket, timeout_s: float) -> None:
        connected.settimeout(None)
        bound = _TIME.pack(int(timeout_s), int(timeout_s % 1 * 1e6))
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, bound)
        self._socket = connected
        self._reader: threading.Thread | None = None

    def start(self, receive: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        """Begin to read; called once."""
        self._reader = start_thread("shared-memory-link", lambda: self._read(receive, lost))

    def send(self, packet: bytes) -> None:
        """PeerLost when the peer is gone or does not read."""
        try:
            self._socket.send(packet, socket.MSG_NOSIGNAL)
        except OSError as error:
            raise PeerLost(f"the other worker's link is gone: {error}") from error

    def shutdown(self) -> None:
        """Make both ends read end-of-file. Does not block."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the link and its thread. Not from that thread."""
        self.shutdown()
        if self._reader is not None:
            self._reader.join()
        self._socket.close()

    def _read(self, receive: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        try:
            while packet := self._socket.recv(MAX_PACKET_BYTES):
                receive(packet)
        except (OSError, PeerLost):
            pass
        finally:
            self.shutdown()
            lost()


@dataclass(frozen=True, slots=True)
class MappedPool:
    """The target's end: the link, and the source's pool read-only."""

    link: PoolLink
    pool: MappedKvMemory

    def close(self) -> None:
        self.link.close()
        self.pool.close()


@contextlib.contextmanager
def _lost_on_os_error(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PeerLost(f"{doing}: {error}") from error


def offer_pool(pair: PairInfo, rendezvous: Rendezvous, memory: KvMemory, timeout_s: float) -> PoolLink:
    """The source's side of the handshake. Blocks; PeerLost when no target comes in time."""
    token = secrets.token_bytes(_TOKEN_BYTES)
    name = b"\0pdserve-" + secrets.token_hex(16).encode()
    deadline = time.monotonic() + timeout_s
    with (
        _lost_on_os_error("waiting for the target"),
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
    ):
        listener.bind(name)
        listener.listen(4)
        rendezvous.set(_KEY, token + name)
        while True:
            listener.settimeout(max(1e-3, deadline - time.monotonic()))
            candidate, _ = listener.accept()
            try:
                if _knows_token(candidate, token, deadline):
                    _send_pool(candidate, pair, memory)
                    return PoolLink(candidate, timeout_s)
            except BaseException:
                candidate.close()
                raise
            candidate.close()


def map_pool(pair: PairInfo, rendezvous: Rendezvous, timeout_s: float) -> MappedPool:
    """The target's side. Blocks; PeerLost when the source does not answer, IncompatiblePeer when it is another."""
    deadline = time.monotonic() + timeout_s
    told = rendezvous.get(_KEY, timeout_s)
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _lost_on_os_error("meeting the source"):
            link.settimeout(max(1e-3, deadline - time.monotonic()))
            link.connect(told[_TOKEN_BYTES:])
            if not _is_same_user(link):
                raise IncompatiblePeer("the source runs as another user")
            link.send(told[:_TOKEN_BYTES])
            return MappedPool(PoolLink(link, timeout_s), _receive_pool(link, pair))
    except BaseException:
        link.close()
        raise


def _is_same_user(peer: socket.socket) -> bool:
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(raw)
    return bool(uid == os.getuid())


def _knows_token(candidate: socket.socket, token: bytes, deadline: float) -> bool:
    candidate.settimeout(max(1e-3, deadline - time.monotonic()))
    try:
        return _is_same_user(candidate) and hmac.compare_digest(candidate.recv(_TOKEN_BYTES + 1), token)
    except OSError:
        return False


def _send_pool(target: socket.socket, pair: PairInfo, memory: KvMemory) -> None:
    greeting = _GREETING.pack(_MAGIC, pair.nonce, pair.epoch, memory.num_blocks, memory.block_bytes)
    # A second, read-only opening of the same file: the target cannot map it writable even by mistake.
    read_only = os.open(f"/proc/self/fd/{memory.fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        socket.send_fds(target, [greeting], [read_only])
    finally:
        os.close(read_only)


def _receive_pool(source: socket.socket, pair: PairInfo) -> MappedKvMemory:
    greeting, fds, _, _ = socket.recv_fds(source, _GREETING.size + 1, 4)
    try:
        if len(greeting) != _GREETING.size or len(fds) != 1:
            raise PeerLost("the source ended the meeting")
        magic, nonce, epoch, num_blocks, block_bytes = _GREETING.unpack(greeting)
        if magic != _MAGIC or nonce != pair.nonce or epoch != pair.epoch:
            raise IncompatiblePeer(f"the source holds another pair than epoch {pair.epoch:,}")
        if block_bytes != pair.block_bytes:
            raise IncompatiblePeer(f"the source's blocks have {block_bytes:,} bytes, here {pair.block_bytes:,}")
        try:
            return MappedKvMemory(fds.pop(), num_blocks, block_bytes)
        except ValueError as error:
            raise IncompatiblePeer(f"the source's {error}") from error
    finally:
        for fd in fds:
            os.close(fd)
