"""What a transport needs to meet its peer, carried on the pair's authenticated control stream."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pdserve.errors import PeerLost


class StreamRendezvous:
    """A two-party key-value exchange: what one side sets the other may get. Thread-safe.

    `send` puts one (key, value) on the control stream and may be called from any thread; `deliver` is called with what
    the peer sent. Values are small (a gloo address is about 170 bytes).
    """

    MAX_KEYS = 64

    def __init__(self, send: Callable[[str, bytes], None]) -> None:
        self._send = send
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._closed = False

    def set(self, key: str, value: bytes) -> None:
        """Give the peer a value."""
        self._send(key, value)

    def get(self, key: str, timeout_s: float) -> bytes:
        """The peer's value, waiting for it in this thread; PeerLost after `timeout_s` or when the stream ends."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: self._closed or key in self._values, timeout_s)
            if self._closed or not arrived:
                raise PeerLost(f"rendezvous: no {key!r} from the peer within {timeout_s:g} s")
            return self._values[key]

    def deliver(self, key: str, value: bytes) -> None:
        """The peer's value has come; ignored beyond MAX_KEYS."""
        with self._changed:
            if len(self._values) < self.MAX_KEYS:
                self._values[key] = value
            self._changed.notify_all()

    def close(self) -> None:
        """Wake every waiter."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
