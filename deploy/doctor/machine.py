"""This machine beside what the wanted workers take: cores, memory, files, shared memory, clock, ports."""

from __future__ import annotations

import mmap
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.cores import Machine, divide, this_machine
from deploy.doctor.finding import Finding, fail, ok, warn
from deploy.machine import MIN_OPEN_FILES, available_bytes, check_can_listen
from deploy.words import counted
from pdserve.exit import StartError
from pdserve.settings import is_loopback, split_address

AREA = "machine"
FILES_PER_WORKER = 32  # router's connection, pipes, log, and a pair's stream, socket and memory for each peer
FILES_PER_REQUEST = 2  # a client's connection and its stream
MIN_WORKER_BYTES = 1 << 30  # Python, torch and a small pool
MIN_SHM_BYTES = 64 << 20
WANTED_RESOLUTION_S = 1e-5
_CLOCK_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_SLOW_SOURCES = ("hpet", "acpi_pm", "refined-jiffies", "jiffies")


@dataclass(frozen=True, slots=True)
class Wanted:
    """The cluster that someone wants to start here."""

    prefill: int = 1
    decode: int = 1
    max_requests: int = 1024
    runs: bool = False  # already: its workers have their memory
    needs_dev_shm: bool = False  # Ray and NCCL do; the KV pools lie in memory files, which have no name

    @property
    def workers(self) -> int:
        return self.prefill + self.decode


def check_machine(wanted: Wanted) -> list[Finding]:
    """All but the ports."""
    return [
        check_cores(wanted, this_machine()),
        check_memory(wanted, available_bytes()),
        check_open_files(wanted),
        check_memfd(),
        check_dev_shm(Path("/dev/shm"), wanted.needs_dev_shm),
        check_huge_pages(),
        check_clock(),
    ]


def check_cores(wanted: Wanted, machine: Machine) -> Finding:
    count = len(machine.cores)
    usable = min(float(count), machine.quota or count)
    share = divide(machine, max(1, wanted.workers))[0]
    threads = counted(share.threads, "thread")
    said = f"{usable:g} cores for {counted(wanted.workers, 'worker')} and a router: {threads} each"
    if usable < wanted.workers:
        return warn(AREA, "cores", said, "workers wait for one another: start fewer, or on more machines (--ray)")
    return ok(AREA, "cores", said)


def check_memory(wanted: Wanted, available: int) -> Finding:
    if wanted.runs:
        running = "1 worker that runs" if wanted.workers == 1 else f"{wanted.workers} workers that run"
        return ok(AREA, "memory", f"{available / 2**30:.1f} GiB available beside {running}")
    least = wanted.workers * MIN_WORKER_BYTES
    said = (
        f"{available / 2**30:.1f} GiB available, {available / 2**30 / max(1, wanted.workers):.1f} GiB for each worker"
    )
    if available < least:
        workers = counted(wanted.workers, "worker")
        hint = f"at least {least >> 30} GiB for {workers}, and the model's weights each: start fewer"
        return warn(AREA, "memory", said, hint)
    return ok(AREA, "memory", said)


def check_open_files(wanted: Wanted) -> Finding:
    """The limit that `pdserve serve` can raise itself to, beside what the cluster may open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    least = MIN_OPEN_FILES + FILES_PER_WORKER * wanted.workers
    most = least + FILES_PER_REQUEST * wanted.max_requests
    if hard == resource.RLIM_INFINITY:
        return ok(AREA, "open files", f"no limit; up to {most:,} are needed")
    need = "1 worker needs" if wanted.workers == 1 else f"{wanted.workers} workers need"
    said = f"limit {hard:,}; {need} {least:,}, with {wanted.max_requests:,} requests {most:,}"
    hint = f"raise the hard limit to {most:,} (ulimit -Hn, LimitNOFILE= of the service, the container's ulimits)"
    if hard < least:
        return fail(AREA, "open files", said, hint)
    return warn(AREA, "open files", said, hint) if hard < most else ok(AREA, "open files", said)


def check_memfd(create: Callable[[str], int] = os.memfd_create) -> Finding:
    """Memory that two processes share without a name: what the shm transport moves KV through."""
    try:
        fd = create("pdserve-doctor")
        try:
            os.ftruncate(fd, mmap.PAGESIZE)
            with mmap.mmap(fd, mmap.PAGESIZE) as memory:
                memory[:4] = b"test"
        finally:
            os.close(fd)
    except OSError as error:
        hint = "KV goes over gloo (TCP) instead; a seccomp profile or an old kernel forbids memfd_create"
        return warn(AREA, "shared memory", f"memfd_create: {error.strerror}", hint)
    return ok(AREA, "shared memory", "memfd works: workers of this machine can map one another's pools")


def check_dev_shm(directory: Path, needed: bool) -> Finding:
    """A place for Ray's and NCCL's segments."""
    make = fail if needed else warn
    who = "Ray and NCCL need it" if needed else "only Ray and NCCL need it"
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            os.posix_fallocate(file.fileno(), 0, mmap.PAGESIZE)
        free = os.statvfs(directory).f_bavail * os.statvfs(directory).f_frsize
    except OSError as error:
        hint = f"mount a tmpfs there (docker: --shm-size 2g); {who}"
        return make(AREA, str(directory), f"cannot be written to: {error.strerror}", hint)
    said = f"{free / 2**20:,.0f} MiB free"
    if free < MIN_SHM_BYTES:
        return make(AREA, str(directory), said, f"at least {MIN_SHM_BYTES >> 20} MiB (docker: --shm-size 2g); {who}")
    return ok(AREA, str(directory), said)


def check_huge_pages(setting: Path = Path("/sys/kernel/mm/transparent_hugepage/enabled")) -> Finding:
    """Attention reads a pool in huge pages about a quarter faster."""
    slower = "attention reads memory about a quarter more slowly without"
    try:
        text = setting.read_text()
    except OSError:
        return warn(AREA, "huge pages", "this kernel has no transparent ones", slower)
    chosen = text[text.find("[") + 1 : text.find("]")]
    if chosen == "never":
        return warn(AREA, "huge pages", "never", f"echo madvise > {setting}; {slower}")
    return ok(AREA, "huge pages", chosen)


def check_clock(source: Path = _CLOCK_SOURCE) -> Finding:
    """Every duration is measured with it, many times in a step."""
    resolution_s = _smallest_step_s()
    name = source.read_text().strip() if source.exists() else "unknown"
    said = f"monotonic, smallest step {resolution_s * 1e9:,.0f} ns, source {name}"
    if name in _SLOW_SOURCES or resolution_s > WANTED_RESOLUTION_S:
        return warn(AREA, "clock", said, "short phases are measured badly; choose tsc or the hypervisor's clock source")
    return ok(AREA, "clock", said)


def _smallest_step_s() -> float:
    smallest = float("inf")
    for _ in range(1000):
        began = now = time.monotonic()
        while now == began:
            now = time.monotonic()
        smallest = min(smallest, now - began)
    return smallest


def check_ports(grpc: str, http: str) -> list[Finding]:
    """Whether both front doors could listen."""
    return [_check_port(flag, address) for flag, address in (("--grpc", grpc), ("--http", http))]


def _check_port(flag: str, address: str) -> Finding:
    try:
        check_can_listen(flag, address)
    except StartError as error:
        return fail("ports", flag, error.message, "`ss -ltnp` names who listens; stop it, or give another address")
    if not is_loopback(split_address(address)[0]):
        hint = "serve refuses it without --insecure-bind: whoever reaches this machine could read and send"
        return warn("ports", flag, f"{address} is free, and reached from other machines", hint)
    return ok("ports", flag, f"{address} is free")
