"""Every prefill-decode link of a cluster on this machine, measured between light processes, one link at a time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass

from deploy.doctor.judge import slowness
from deploy.doctor.link_end import LinkFigure, ProbeStart
from deploy.local.child_process import describe_exit
from deploy.local.environment import child_environment

READY_TIMEOUT_S = 120.0
LINK_TIMEOUT_S = 180.0
LINK_BYTES = 64 << 20
BLOCK_BYTES = 256 << 10
SECOND_LOOKS = 2


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """Which links, over what."""

    prefill: int
    decode: int
    kv_transport: str = "auto"
    devices: tuple[str, ...] = ()  # one per worker, prefill workers first; empty: all on the CPU
    host: str = "127.0.0.1"
    total_bytes: int = LINK_BYTES
    block_bytes: int = BLOCK_BYTES

    @property
    def workers(self) -> list[str]:
        return [f"prefill-{n}" for n in range(self.prefill)] + [f"decode-{n}" for n in range(self.decode)]


def probe_command(worker_id: str) -> list[str]:
    """The program of a probe."""
    return [sys.executable, "-P", "-m", "deploy.doctor.link_probe"]


async def measure_links(plan: LinkPlan, command: Callable[[str], list[str]] = probe_command) -> list[LinkFigure]:
    """All pairs, prefill worker by prefill worker. A link that cannot be measured has its figure, with the reason.

    One that looks slow is measured again, and the best of it counts: something else may have been busy.
    """
    sockets: dict[str, dict[str, socket.socket]] = defaultdict(dict)
    pairs = list(itertools.product(plan.workers[: plan.prefill], plan.workers[plan.prefill :]))
    for source, target in pairs:
        sockets[source][target], sockets[target][source] = socket.socketpair()
    async with contextlib.AsyncExitStack() as stack:
        probes = {}
        for n, worker in enumerate(plan.workers):
            device = plan.devices[n] if plan.devices else "cpu"
            probes[worker] = await stack.enter_async_context(_probe(plan, worker, device, sockets[worker], command))
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                errors = dict(zip(probes, await asyncio.gather(*map(_until_ready, probes.values())), strict=True))
        except TimeoutError:
            errors = dict.fromkeys(probes, f"no probe within {READY_TIMEOUT_S:g} s")
        figures = []
        for source, target in pairs:
            error = errors[source] or errors[target]
            if error:
                figures.append(LinkFigure(source, target, error=error))
            else:
                figures.append(await _measure(probes[target], source, target))
        for _ in range(SECOND_LOOKS):
            for n, figure in enumerate(figures):
                if not figure.error and slowness(figure, figures):
                    again = await _measure(probes[figure.dst], figure.src, figure.dst)
                    figures[n] = max(figure, again, key=lambda one: one.bytes_per_second)
        return figures


@contextlib.asynccontextmanager
async def _probe(
    plan: LinkPlan, worker: str, device: str, sockets: dict[str, socket.socket], command: Callable[[str], list[str]]
) -> AsyncIterator[Process]:
    """A probe while the block runs; it dies with this process."""
    links = {peer: one.fileno() for peer, one in sockets.items()}
    start = ProbeStart(worker, device, plan.kv_transport, plan.host, max(1, plan.total_bytes // plan.block_bytes),
                       plan.block_bytes, links)  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "deploy.local.die_with_parent", str(os.getpid()), *command(worker),
        stdin=PIPE, stdout=PIPE, env=child_environment(), pass_fds=tuple(links.values()), start_new_session=True,
    )  # fmt: skip
    for one in sockets.values():
        one.close()
    assert process.stdin is not None
    process.stdin.write(json.dumps(asdict(start)).encode() + b"\n")
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _until_ready(process: Process) -> str:
    """Nothing, or why it is not."""
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        return f"its probe ended: {describe_exit(await process.wait())}"
    error: str = json.loads(line)["error"]
    return error


async def _measure(target: Process, source: str, target_id: str) -> LinkFigure:
    assert target.stdin is not None and target.stdout is not None
    try:
        target.stdin.write(source.encode() + b"\n")
        async with asyncio.timeout(LINK_TIMEOUT_S):
            line = await target.stdout.readline()
        said = json.loads(line)
        return LinkFigure(**said | {"refused": tuple(said["refused"])})
    except TimeoutError:
        return LinkFigure(source, target_id, error=f"not measured within {LINK_TIMEOUT_S:g} s")
    except (ValueError, OSError):
        return LinkFigure(source, target_id, error="its probe ended")
