"""How fast each transport moves KV blocks between two processes, beside a plain copy and a bare gloo send.

    python -m bench.transport [--total-bytes N] [--block-bytes N ...] [--repeats N]

Every figure is the best of the repeats, in one run, so that the ratios mean something on a machine that is shared. Two
placements: "scattered", every block somewhere else on both sides, and "runs", as a pool gives out what was freed
together. The peers: one memcpy of all bytes, and a bare gloo send of a message per block. Block sizes: 64 and 128 KiB
(a model of 28 million parameters with 8 and 16 tokens per block), 1,792 KiB (the shape of Qwen3-0.6B) and 2 MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
from dataclasses import asdict

import torch

from bench.arguments import positive
from bench.transport.figures import Figure, table
from bench.transport.measuring import Bench
from bench.transport.source_process import SourceEnd
from bench.transport.wire import Wire


async def run(total_bytes: int, block_sizes: list[int], repeats: int) -> list[Figure]:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "bench.transport", "--source-fd", str(theirs.fileno())]
    child = await asyncio.to_thread(subprocess.Popen, command, pass_fds=[theirs.fileno()])
    theirs.close()
    bench = Bench(Wire(ours), repeats)
    try:
        for block_bytes in block_sizes:
            await bench.block_size(total_bytes, block_bytes)
    finally:
        child.kill()
        await asyncio.to_thread(child.wait)
    return bench.figures


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.transport", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--total-bytes", type=positive, default=128 << 20)
    parser.add_argument("--block-bytes", type=positive, nargs="+", default=[64 << 10, 128 << 10, 1792 << 10, 2 << 20])
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object per figure instead of a table")
    parser.add_argument("--source-fd", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.source_fd is not None:
        asyncio.run(SourceEnd(Wire(socket.socket(fileno=arguments.source_fd))).serve())
        return
    figures = asyncio.run(run(arguments.total_bytes, arguments.block_bytes, arguments.repeats))
    print("\n".join(json.dumps(asdict(f)) for f in figures) if arguments.json else table(figures))


if __name__ == "__main__":
    main()
