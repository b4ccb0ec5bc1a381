"""JSON lines between the two processes."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

from pdserve.errors import PeerLost


class Wire:
    """To the other process: orders, answers and rendezvous values."""

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
