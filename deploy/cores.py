"""How many threads each worker computes with, and on which cores: decided once, for all workers of a machine.

machine            workers   each computes with          pinned (auto)
2 cores            1 + 1     1 thread                    no: the router would share a core with a pinned engine
2 cores            1         2 threads                   no
64 cores           1 + 1     31 threads on 31 cores      yes, disjoint; 2 cores are left for the router
64 cores, quota 4  1 + 1     2 threads                   no: a quota is time, not cores
more workers than cores      1 thread                    no
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROUTER_FROM_CORES = 8  # a machine this large leaves some for the router and the event loops
ROUTER_SHARE = 32  # one core of so many
PIN_FROM_CORES = 4  # of its own: with fewer, a thread that finds its core taken has nowhere to go
SMT_FROM_CORES = 8  # with more processors than this, siblings on one core are counted once: they share what computes


@dataclass(frozen=True, slots=True)
class Machine:
    """Where workers may run."""

    cores: tuple[tuple[int, ...], ...]  # each core's processors (more than one with SMT), neighbours side by side
    quota: float | None = None  # processors' worth of time that a cgroup grants; None: all


@dataclass(frozen=True, slots=True)
class Share:
    """One worker's part of the machine."""

    threads: int  # that compute
    processors: tuple[int, ...] = ()  # all threads of the process stay on these; empty: anywhere


def divide(machine: Machine, num_workers: int, threads: int | None = None, pin: str = "auto") -> list[Share]:
    """Equal shares; `threads` is what was asked for each (None: all cores of its share), `pin` auto, on or off.

    Never more threads than cores while workers are pinned; without pinning `threads` is obeyed.
    """
    assert num_workers > 0 and machine.cores and pin in ("auto", "on", "off")
    num_cores = len(machine.cores)
    limited = machine.quota is not None and machine.quota < num_cores
    usable = max(1, int(machine.quota)) if limited and machine.quota is not None else num_cores
    spare = -(-usable // ROUTER_SHARE) if usable >= ROUTER_FROM_CORES else 0
    each = max(1, (usable - spare) // num_workers)
    spare = max(0, min(spare, usable - each * num_workers))
    room = not limited and each * num_workers <= num_cores
    if not room or pin == "off" or (pin == "auto" and each < PIN_FROM_CORES):
        return [Share(threads or each)] * num_workers
    own = [machine.cores[spare + n * each : spare + (n + 1) * each] for n in range(num_workers)]
    return [Share(min(threads or each, each), tuple(p for core in cores for p in core)) for cores in own]


def this_machine() -> Machine:
    """What this process may use."""
    allowed = sorted(os.sched_getaffinity(0))
    groups: dict[tuple[int, ...], list[int]] = {}
    for processor in allowed:
        name = _place(processor) if len(allowed) > SMT_FROM_CORES else (0, processor)
        groups.setdefault(name, []).append(processor)
    return Machine(tuple(tuple(groups[name]) for name in sorted(groups)), _quota())


def _place(processor: int) -> tuple[int, ...]:
    """(package, core): equal for siblings, and close for what shares memory."""
    topology = Path(f"/sys/devices/system/cpu/cpu{processor}/topology")
    try:
        return int((topology / "physical_package_id").read_text()), int((topology / "core_id").read_text())
    except (OSError, ValueError):
        return 0, processor


def _quota() -> float | None:
    """Of the innermost cgroup, version 2 or 1."""
    for limit, period in (
        ("/sys/fs/cgroup/cpu.max", None),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    ):
        try:
            words = Path(limit).read_text() + (" " + Path(period).read_text() if period else "")
        except OSError:
            continue
        return quota_of(words)
    return None


def quota_of(words: str) -> float | None:
    """Processors from "QUOTA PERIOD" in microseconds; None where there is no limit ("max", -1)."""
    found = re.fullmatch(r"(\d+)\s+(\d+)\s*", words.strip())
    return int(found[1]) / int(found[2]) if found and int(found[2]) > 0 else None


def shown(processors: Sequence[int]) -> str:
    """0-3,8 for 0 1 2 3 8."""
    parts: list[list[int]] = []
    for processor in sorted(processors):
        if parts and parts[-1][-1] == processor - 1:
            parts[-1][1:] = [processor]
        else:
            parts.append([processor])
    return ",".join("-".join(map(str, part)) for part in parts)
