"""Identities: requests, attempts, boots."""

from __future__ import annotations

import os
import secrets
import uuid
from typing import NamedTuple

PROTOCOL_VERSION = "2"
"""Version of the worker protocol; two processes that differ never talk."""


class SequenceKey(NamedTuple):
    """One dispatch of one request (one choice of it): what every message about a sequence carries.

    The router draws `attempt` anew for every dispatch, so that a reused request id is another sequence. A tuple,
    because every token looks its sequence up, and a dataclass hashes six times slower.
    """

    request_id: str
    attempt: int = 1


def new_request_id() -> str:
    """A fresh request id: 32 hexadecimal digits after a prefix."""
    return f"req-{uuid.uuid4().hex}"


def new_boot_id() -> bytes:
    """128 random bits that name one start of one process; a restart is another peer."""
    return secrets.token_bytes(16)


def host_id() -> str:
    """Names the running kernel and its shared memory: two processes with the same id can map each other's memory."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return f"{file.read().strip()}:{os.stat('/proc/self/ns/mnt').st_ino}"
