"""The ready file: who answers where, for programs that started us."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pdserve.exit import ExitCode, StartError
from pdserve.settings import ConfigError


@dataclass(frozen=True, slots=True)
class ReadyWorker:
    """One worker, as the ready file tells it."""

    id: str
    role: str
    pid: int
    device: str


@dataclass(frozen=True, slots=True)
class ReadyInfo:
    """What a cluster says when everything answers and is warm."""

    grpc: str  # host:port
    http: str | None  # host:port; None: the HTTP stack is not installed
    model: str  # served name
    workers: Sequence[ReadyWorker]


def remove_if_stale(path: Path) -> None:
    """Remove what a cluster left that could not clean up (kill -9): none of the workers it names lives.

    Called before anything that may take a while or fail, since somebody may be waiting for the file. That of a cluster
    that runs stays: perhaps this start will not get as far as to replace it.
    """
    try:
        left = read_ready_file(path)
    except ConfigError:  # there is none, or it is another program's
        return
    if not any(_lives(worker) for worker in left.workers):
        with suppress(OSError):  # prepare_ready_file will say so
            path.unlink()


def _lives(worker: ReadyWorker) -> bool:
    """Whether its process is a worker's: numbers of processes come again."""
    try:
        command = Path(f"/proc/{worker.pid}/cmdline").read_bytes()
    except OSError:
        return False
    return f"{worker.role}_worker".encode() in command


def prepare_ready_file(path: Path) -> None:
    """Remove what was there, so that nobody takes it for ours; StartError when we could not write there."""
    try:
        path.unlink(missing_ok=True)
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise StartError(
                f"--ready-file is {path}; its directory is missing or cannot be written to", ExitCode.OUTPUT
            )
    except OSError as error:
        raise StartError(f"--ready-file is {path}; {error.strerror}", ExitCode.OUTPUT) from None


def write_ready_file(path: Path, info: ReadyInfo) -> None:
    """Written beside it, synced, renamed into place: whoever sees the file sees all of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            json.dump(asdict(info), file)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise StartError(f"--ready-file is {path}; it cannot be written: {error.strerror}", ExitCode.OUTPUT) from None
    finally:
        beside.unlink(missing_ok=True)


def read_ready_file(path: Path) -> ReadyInfo:
    """What a running cluster wrote; ConfigError when it is missing (not ready yet, or stopped) or not one."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        workers = [
            ReadyWorker(str(one["id"]), str(one["role"]), int(one["pid"]), str(one["device"]))
            for one in said["workers"]
        ]
        http = None if said["http"] is None else str(said["http"])
        return ReadyInfo(str(said["grpc"]), http, str(said["model"]), workers)
    except OSError as error:
        raise ConfigError([f"--ready-file is {path}; {error.strerror}: is the server running?"]) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError([f"--ready-file is {path}; it is not one that pdserve serve wrote"]) from None
