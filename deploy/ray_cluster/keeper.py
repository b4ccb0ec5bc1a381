"""The process that is Ray's driver: it has the workers placed and started, says once who is where, and ends them.

Its contract is a worker's (deploy/local/child_process.py): one line of JSON in, one out, SIGTERM or the end of its
input stops it. Ray forks, sets signal handlers and ties the life of its servers to the thread that started them; here
that is a main thread which does nothing else.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from deploy.ray_cluster.actors import place
from deploy.ray_cluster.connection import connected
from deploy.ray_cluster.placement import KeeperStart
from pdserve.exit import ExitCode, StartError
from pdserve.settings import ConfigError

WORKER_STOP_S = 5.0

Say = Callable[[dict[str, Any]], None]


def main() -> int:
    """Read the start line, keep the workers, return the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answer = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever Ray prints is no answer
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)

    def say(message: dict[str, Any]) -> None:
        try:
            answer.write(json.dumps(message) + "\n")
        except OSError:
            pass  # the launcher is gone

    def give_up(error: StartError) -> None:
        """A watchdog's end, for a native call that hangs; the kernel kills Ray's servers with us."""
        _say(say, error)
        os._exit(int(error.exit_code))

    try:
        start = KeeperStart.from_json(sys.stdin.buffer.readline().decode())
        with connected(start, give_up) as ray:
            asyncio.run(_keep(ray, start, say))
    except ConfigError as error:
        return _say_error(say, StartError("; ".join(error.problems), ExitCode.CONFIG))
    except StartError as error:
        return _say_error(say, error)
    except Exception as error:
        logging.getLogger(__name__).exception("keeper died")
        return _say_error(say, StartError(f"{type(error).__name__}: {error}"))
    return ExitCode.OK


def _say_error(say: Say, error: StartError) -> int:
    """The last word of the main thread."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # we end anyhow, and Ray's handler would be loud in Ray's own exit
    _say(say, error)
    return int(error.exit_code)


def _say(say: Say, error: StartError) -> None:
    say({"ready": False, "error": error.message, "exit_code": int(error.exit_code)})


async def _keep(ray: Any, start: KeeperStart, say: Say) -> None:
    """Workers up, until asked to stop; none is left when this returns."""
    stop = asyncio.Event()
    _stop_when_asked(stop)
    actors = await asyncio.to_thread(place, ray, start)
    try:
        starting = asyncio.create_task(actors.start())
        stopping = asyncio.create_task(stop.wait())
        try:
            both: set[asyncio.Task[Any]] = {starting, stopping}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                say({"ready": True, "workers": starting.result()})
                await actors.watch_until(stopping)
        finally:
            starting.cancel()
            stopping.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
    finally:
        await actors.stop(WORKER_STOP_S)


def _stop_when_asked(stop: asyncio.Event) -> None:
    """By SIGTERM (Ray has set a handler of its own: ours replaces it), or by the launcher's end."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)

    def on_input() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stop.set()

    loop.add_reader(0, on_input)


if __name__ == "__main__":
    sys.exit(main())
