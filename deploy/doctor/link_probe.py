"""One worker's stand-in: the ends of its links, in a process of their own.

    python -m deploy.doctor.link_probe        started by deploy/doctor/links.py, with a ProbeStart as its first line

A decode worker's probe drives: for every name on its standard input it measures the link from that prefill worker and
prints what it found. A prefill worker's probe does what it is told over the links. Both end with their input.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from deploy.doctor.link_end import LinkFigure, MakeTransports, Probe, ProbeStart, reason
from deploy.doctor.link_meter import LinkMeter
from deploy.doctor.link_source import serve_link
from deploy.doctor.link_wire import LinkWire
from kv_transfer.selection import make_transports
from pdserve.errors import ServingError


async def run(start: ProbeStart, make: MakeTransports = make_transports) -> None:
    """Until standard input ends; says first whether it can measure."""
    try:
        probe = await asyncio.to_thread(Probe, start, make)
        wires = {peer: await LinkWire.over(fd) for peer, fd in start.links.items()}
    except Exception as error:  # the root of this process: whoever started it tells the user
        print(json.dumps({"error": reason(error)}), flush=True)
        return
    print(json.dumps({"error": ""}), flush=True)
    async with asyncio.TaskGroup() as tasks:
        serving = []
        if start.worker_id.startswith("prefill"):
            serving = [tasks.create_task(serve_link(probe, wire)) for wire in wires.values()]
        await _answer_orders(probe, wires)
        for task in serving:
            task.cancel()


async def _answer_orders(probe: Probe, wires: Mapping[str, LinkWire]) -> None:
    """A line in, a figure out; a link may be asked for again."""
    hellos: dict[str, Mapping[str, Any]] = {}
    while line := await asyncio.to_thread(sys.stdin.readline):
        source = line.strip()
        try:
            if source not in hellos:
                hellos[source] = await wires[source].hear()
            figure = await LinkMeter(probe, source, wires[source]).measure(hellos[source])
        except (ServingError, OSError, RuntimeError, TimeoutError) as error:
            figure = LinkFigure(source, probe.start.worker_id, error=reason(error))
        print(json.dumps(asdict(figure)), flush=True)


def main(make: MakeTransports = make_transports) -> None:
    """The child's whole life."""
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    said: dict[str, Any] = json.loads(sys.stdin.readline())
    asyncio.run(run(ProbeStart(**said), make))


if __name__ == "__main__":
    main()
