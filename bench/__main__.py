"""Every component benchmark, one after the other: `make bench`, or `python -m bench NAME...` for some."""

from __future__ import annotations

import os
import subprocess
import sys

NAMES = (
    "scheduler_step",
    "host_overhead",
    "idle_cpu",
    "sampling",
    "grammar",
    "transport",
    "exposed_transfer",
    "linear",
    "attention",
    "engine_step",
    "router_stream",
    "load_ceiling",
    "observability",
    "placement_compat",
    "gpu_step",
    "gpu_split",
    "gpu_kernels",
)


def run(names: list[str]) -> int:
    """Each in a process of its own, so that none inherits another's threads; 1 when any failed, 2 for a wrong name."""
    if {"-h", "--help"} & set(names):
        print(f"{__doc__}\nThere are {', '.join(NAMES)}.")
        return 0
    wrong = [name for name in names if name not in NAMES]
    if wrong:
        print(f"bench: {wrong[0]} is not a benchmark; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    failed = []
    for name in names or NAMES:
        print(f"== {name} (load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)", flush=True)
        if subprocess.run([sys.executable, "-m", f"bench.{name}"], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"bench: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
