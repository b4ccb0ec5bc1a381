"""What this machine has: cores, memory, ports, file descriptors; told without loading torch (GPUs: gpus.py)."""

from __future__ import annotations

import os
import platform
import re
import resource
import socket
from pathlib import Path

from pdserve.exit import ExitCode, StartError
from pdserve.settings import split_address

MIN_OPEN_FILES = 256
WANTED_OPEN_FILES = 65536


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def machine_in_words() -> str:
    """By which a profile that was measured here is known."""
    return f"{platform.machine()}, {os.cpu_count()} processors"


def available_bytes() -> int:
    """Memory that could be had without swapping."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 1 << 30


def raise_open_files() -> None:
    """Allow as many open files as the system lets us; StartError when that is too few to serve."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft != resource.RLIM_INFINITY and soft < MIN_OPEN_FILES:
        raise StartError(
            f"open files are limited to {soft}; at least {MIN_OPEN_FILES} are needed (ulimit -n)", ExitCode.ENVIRONMENT
        )


def check_can_listen(flag: str, address: str) -> None:
    """Bind an address for a moment; StartError naming the flag when it cannot be had."""
    host, port = split_address(address)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen(1)
    except OSError as error:
        reason = "in use" if "in use" in str(error) else error.strerror or str(error)
        raise StartError(f"{flag} is {address}; {reason}; give another or port 0", ExitCode.ENVIRONMENT) from None
