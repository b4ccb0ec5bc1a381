"""A server under test: one or more processes behind one HTTP port, started once, held stopped while others run."""

from __future__ import annotations

import http.client
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from bench.served.process_tree import end_trees, signal_all, tree_of

STOP_GRACE_S = 12.0
POLL_S = 0.25
DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "TERM")  # should the benchmark be killed; kept through exec


class ServerFailed(Exception):
    """A server did not come up, or is gone; the message ends with its last words."""


@dataclass(frozen=True, slots=True)
class Part:
    """One program of a system."""

    label: str  # leads the names of its processes in the report; empty where they name themselves
    command: Sequence[str]
    port: int  # 127.0.0.1; answers GET /health when the part can serve
    health: str = "/health"


@dataclass(slots=True)
class Server:
    """Every part of one system, running. `start`, `await_ready`, then `park` and `resume` in turn; always `stop`."""

    name: str
    parts: Sequence[Part]
    log_dir: Path
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def port(self) -> int:
        """Where clients ask: the last part's."""
        return self.parts[-1].port

    def start(self) -> None:
        """Start all parts at once, each in a session of its own: Ctrl-C reaches only the benchmark."""
        for part in self.parts:
            with self._log(part).open("wb") as log:
                self.children.append(
                    subprocess.Popen(
                        [*DIE_WITH_PARENT, *part.command],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

    def await_ready(self, limit_s: float) -> float:
        """Seconds until every part answered; raises ServerFailed when one ends or the limit passes."""
        begin_s = time.monotonic()
        for part, child in zip(self.parts, self.children, strict=True):
            while not _answers(part):
                if child.poll() is not None:
                    raise ServerFailed(f"{self.name} ended while it started:\n{self.last_words(part)}")
                if time.monotonic() > begin_s + limit_s:
                    raise ServerFailed(f"{self.name} was not ready after {limit_s:g} s:\n{self.last_words(part)}")
                time.sleep(POLL_S)
        return time.monotonic() - begin_s

    def processor_s(self) -> dict[str, float]:
        """Processor seconds so far, by process: `part/name`, or the pid's own name; equal names are added up."""
        found: dict[str, float] = {}
        for part, child in zip(self.parts, self.children, strict=True):
            for process in tree_of(child.pid):
                name = "/".join(filter(None, (part.label, process_name(process.pid, process.name))))
                found[name] = found.get(name, 0.0) + process.processor_s
        return found

    def root_pid(self, part: Part) -> int:
        return self.children[list(self.parts).index(part)].pid

    def park(self) -> None:
        """Stop all processes in place: parked, a server costs memory and no processor time."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for child in self.children:
            signal_all(tree_of(child.pid), number)

    def last_words(self, part: Part, num_lines: int = 15) -> str:
        lines = self._log(part).read_text("utf-8", "replace").splitlines()
        return "\n".join(["  " + line[:300] for line in lines[-num_lines:]])

    def _log(self, part: Part) -> Path:
        return self.log_dir / f"{self.name}{f'-{part.label}' if part.label else ''}.log"


def stop_all(servers: Sequence[Server]) -> None:
    """End every process of every server, all at once. Safe to repeat."""
    children = [child for server in servers for child in server.children]
    end_trees([child.pid for child in children], STOP_GRACE_S)
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(1.0)
    for server in servers:
        server.children.clear()


def process_name(pid: int, comm: str) -> str:
    """What a process is for: a worker's module, or the name it gave itself."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return comm
    modules = [after.decode() for word, after in pairwise(words) if word == b"-m"]
    if modules:
        return modules[0].rpartition(".")[2]
    return "tracker" if any(b"resource_tracker" in word for word in words) else comm


def _answers(part: Part) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", part.port, timeout=2.0)
    try:
        connection.request("GET", part.health)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
