"""Times transfers of KV between two processes over a worker's own transports, by size."""

from __future__ import annotations

import asyncio
import math
import socket
import subprocess
import sys

from bench.transport import Bench, Wire, filled

FILL = 1 << 16  # pools are filled with so many random bytes at a time
SIZES = (1, 4, 16, 64)  # of the smallest pool that can be filled
MOST_BYTES = 64 << 20
TRANSPORTS = {"shm": "shared memory", "gloo": "gloo"}
"""Name of --kv-transport -> that of bench.transport."""


def measure_transfers(transport: str, block_bytes: int, repeats: int = 5) -> list[tuple[int, float]]:
    """(bytes, seconds), the median of blocks that lie scattered and of those in runs, each the best of the repeats."""
    return asyncio.run(_measure(TRANSPORTS[transport], block_bytes, repeats))


async def _measure(name: str, block_bytes: int, repeats: int) -> list[tuple[int, float]]:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "bench.transport", "--source-fd", str(theirs.fileno())]
    child = await asyncio.to_thread(subprocess.Popen, command, pass_fds=[theirs.fileno()])
    theirs.close()
    bench = Bench(Wire(ours), repeats)
    least = FILL // math.gcd(FILL, block_bytes)
    found = []
    try:
        for size in SIZES:
            num_blocks = least * size
            if size > 1 and num_blocks * block_bytes > MOST_BYTES:
                break
            memory = filled(num_blocks, block_bytes)
            await bench.order("fill", num_blocks=num_blocks, block_bytes=block_bytes)
            await bench.done()
            await bench.channel(name, memory)
            found += [(num_blocks * block_bytes, figure.seconds) for figure in bench.figures[-2:]]
    finally:
        child.kill()
        await asyncio.to_thread(child.wait)
    return found
