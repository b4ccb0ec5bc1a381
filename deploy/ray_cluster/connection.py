"""Being a driver of Ray: of a cluster that is ours alone, or of one that runs already."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from deploy.local.child_process import one_line
from deploy.machine import num_cores
from deploy.ray_cluster.placement import LOCAL, KeeperStart, bundle_of
from pdserve.exit import ExitCode, StartError
from pdserve.settings import split_address

PROBE_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 60.0
LOCAL_TIMEOUT_S = 120.0  # a cluster's start takes 10 s, and three times that on a busy machine
OBJECT_STORE_BYTES = 80 << 20  # about the least that Ray takes; nothing of ours goes there


@contextlib.contextmanager
def connected(start: KeeperStart, give_up: Callable[[StartError], None]) -> Iterator[Any]:
    """The module `ray`, connected; on the way out disconnected, and a local cluster ended.

    Raises StartError. A connection that hangs is given up from another thread by `give_up`, which must end the process.
    """
    local = start.address == LOCAL
    if not local and start.address != "auto":
        _probe(start.address)
    os.environ.update(_environment(local))
    limit_s = LOCAL_TIMEOUT_S if local else CONNECT_TIMEOUT_S
    late = StartError(f"--ray is {start.address}; Ray did not answer within {limit_s:g} s", ExitCode.ENVIRONMENT)
    watchdog = threading.Timer(limit_s, give_up, (late,))
    watchdog.daemon = True
    watchdog.start()
    try:
        import ray

        ray.init(address=start.address, logging_level="warning", **(_local_options(start) if local else {}))
    except (Exception, SystemExit) as error:  # Ray raises many kinds, and all mean the same here
        raise StartError(f"--ray is {start.address}; {_reason(error)}", ExitCode.ENVIRONMENT) from None
    finally:
        watchdog.cancel()
    try:
        yield ray
    finally:
        ray.shutdown()


def _local_options(start: KeeperStart) -> dict[str, Any]:
    """A cluster that holds the workers whatever the machine: its CPUs are promises, not measurements."""
    cpus = bundle_of(start, 0).cpus * len(start.workers)
    return {
        "num_cpus": int(max(num_cores(), cpus + 1)),
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "_temp_dir": start.temp_dir,
    }


def _environment(local: bool) -> dict[str, str]:
    """Read by Ray at its import and by the processes it starts."""
    quiet = {"RAY_DEDUP_LOGS": "0", "RAY_COLOR_PREFIX": "0"}
    if not local:
        return quiet
    return quiet | {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Or Ray kills our workers when anybody on the machine fills its memory; what they use is fixed at their start.
        "RAY_memory_monitor_refresh_ms": "0",
        # Whoever reaches a port of Ray runs code as us: without this name's "1" it listens on loopback only, ...
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # ... and who shows no token is refused there too.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }


def _reason(error: BaseException) -> str:
    """Ray's words, as far as they are of use on our command line."""
    return one_line(error).split(" Please specify the one to connect to", 1)[0][:500]


def _probe(address: str) -> None:
    """Ray tries for minutes where nobody listens: look first."""
    try:
        socket.create_connection(split_address(address), PROBE_TIMEOUT_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise StartError(f"--ray is {address}; no Ray there: {reason}", ExitCode.ENVIRONMENT) from None
