"""The processes of one server, out of /proc: their processor time, their cores, and their end."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PR_SET_CHILD_SUBREAPER = 36  # <sys/prctl.h>
PROC = Path("/proc")
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """One process, now."""

    pid: int
    parent_pid: int
    name: str  # comm, 15 characters
    processor_s: float  # user and system, all threads
    started_ticks: int  # with the pid, its identity


def read_stat(pid: int) -> ProcessStat | None:
    """None for a process that is gone."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    before, _, after = text.rpartition(")")
    fields = after.split()
    processor_s = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return ProcessStat(pid, int(fields[1]), before.partition("(")[2], processor_s, int(fields[19]))


def tree_of(root_pid: int) -> list[ProcessStat]:
    """The process and all below it, parents first; empty when it is gone."""
    everyone = [stat for entry in PROC.iterdir() if entry.name.isdigit() and (stat := read_stat(int(entry.name)))]
    children: dict[int, list[ProcessStat]] = {}
    for stat in everyone:
        children.setdefault(stat.parent_pid, []).append(stat)
    found = [stat for stat in everyone if stat.pid == root_pid]
    for stat in found:  # grows while it is walked
        found += children.get(stat.pid, [])
    return found


def busy_s() -> float:
    """Processor seconds that all cores have spent on anything, time stolen by other guests included."""
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, (PROC / "stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_S


def signal_all(processes: Iterable[ProcessStat], number: signal.Signals) -> None:
    """To those that still are who they were."""
    for one in processes:
        now = read_stat(one.pid)
        if now is not None and now.started_ticks == one.started_ticks:
            with suppress(ProcessLookupError):
                os.kill(one.pid, number)


def pin(root_pid: int, core: int) -> None:
    """Every thread of the tree, as `taskset -a` does: what a process set for itself does not stay."""
    for process in tree_of(root_pid):
        with suppress(OSError):
            for task in (PROC / str(process.pid) / "task").iterdir():
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(int(task.name), {core})


def end_trees(root_pids: Sequence[int], grace_s: float) -> None:
    """Ask every root to stop, wait, then kill what is left of the trees; returns when all of it is gone.

    Also gone is the shared memory that only they had mapped: a process that is killed cannot unlink its own.
    """
    tree = [process for pid in root_pids for process in tree_of(pid)]
    shared = {inode for process in tree for inode in _shared_memory(process.pid)}
    signal_all(tree, signal.SIGCONT)
    signal_all([process for process in tree if process.pid in root_pids], signal.SIGINT)
    _wait_for(tree, grace_s)
    tree += [process for pid in root_pids for process in tree_of(pid)]  # what was started meanwhile
    shared |= {inode for process in tree for inode in _shared_memory(process.pid)}
    signal_all(tree, signal.SIGKILL)
    _wait_for(tree, 5.0)
    for path in SHARED_MEMORY.iterdir():
        with suppress(FileNotFoundError):  # others come and go there
            if path.stat().st_ino in shared:
                path.unlink()


def _shared_memory(pid: int) -> list[int]:
    """Inodes of the named segments that a process has mapped; a semaphore was mapped under another name than it has."""
    try:
        lines = (PROC / str(pid) / "maps").read_text().splitlines()
    except OSError:
        return []
    return [int(line.split()[4]) for line in lines if f" {SHARED_MEMORY}/" in line]


def _wait_for(processes: list[ProcessStat], limit_s: float) -> None:
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        for one in processes:
            with suppress(ChildProcessError):  # not ours, or collected already
                os.waitpid(one.pid, os.WNOHANG)
        if not any((now := read_stat(one.pid)) and now.started_ticks == one.started_ticks for one in processes):
            return
        time.sleep(0.05)


def hear_signals() -> None:
    """Ctrl-C and SIGTERM end us, whatever a shell that put us in the background told us to ignore."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def adopt_orphans() -> None:
    """What our servers start and leave behind becomes our child, so that nothing escapes `end_tree`."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
