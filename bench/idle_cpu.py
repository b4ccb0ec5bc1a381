"""What a cluster that serves nobody costs: CPU time of router, launcher and workers, by process and thread.

    python -m bench.idle_cpu [--seconds 20] [-- --prefill 1 --decode 1 ...]

Starts `pdserve serve` on a small model as a user would, waits until it is ready, lets it settle, and reads the CPU time
of each of its threads from /proc before and after. What follows `--` goes to `pdserve serve`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from bench.arguments import duration
from deploy.models.make_model import make_model
from deploy.models.model_spec import ModelSpec

SETTLE_S = 5.0
START_S = 300.0
GATE, STRETCH = 0.02, 0.005  # of a core


@dataclass(frozen=True, slots=True)
class Spent:
    """What one thread has used."""

    cpu_s: float
    wakeups: int  # times that it waited and went on


def threads_of(pid: int) -> dict[tuple[int, str], Spent]:
    """By thread id and name; a thread that ends meanwhile is left out."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            name = (task / "comm").read_text().strip()
            cpu_s = int((task / "schedstat").read_text().split()[0]) / 1e9
            status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        except (FileNotFoundError, ProcessLookupError):
            continue
        found[int(task.name), name] = Spent(cpu_s, int(status["voluntary_ctxt_switches"]))
    return found


def measure(pids: dict[str, int], seconds: float) -> dict[str, dict[str, Spent]]:
    """Per process, per name of thread: what they used in `seconds`."""
    before = {name: threads_of(pid) for name, pid in pids.items()}
    time.sleep(seconds)
    used: dict[str, dict[str, Spent]] = {}
    for name, pid in pids.items():
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
        for thread, now in threads_of(pid).items():
            then = before[name].get(thread, Spent(0.0, 0))
            sums[thread[1]][0] += now.cpu_s - then.cpu_s
            sums[thread[1]][1] += now.wakeups - then.wakeups
        used[name] = {thread: Spent(cpu_s, int(wakeups)) for thread, (cpu_s, wakeups) in sums.items()}
    return used


def show(used: dict[str, dict[str, Spent]], seconds: float) -> float:
    """A line per thread that did anything; the sum as a share of a core."""
    total_s = 0.0
    for process, threads in used.items():
        process_s = sum(spent.cpu_s for spent in threads.values())
        total_s += process_s
        print(f"{process:12} {100 * process_s / seconds:6.3f} % of a core, {len(threads)} names of threads")
        for name, spent in sorted(threads.items(), key=lambda item: -item[1].cpu_s):
            if spent.wakeups:
                share, rate = 100 * spent.cpu_s / seconds, spent.wakeups / seconds
                print(f"    {name:16} {share:6.3f} %  {rate:7.2f} wake-ups/s")
    share = total_s / seconds
    print(f"idle cluster: {100 * share:.2f} % of a core (gate {100 * GATE:g}, stretch {100 * STRETCH:g})")
    return share


def wait_ready(server: subprocess.Popen[bytes], ready: Path) -> dict[str, int]:
    """Process ids by name, once everything answers."""
    ends_s = time.monotonic() + START_S
    while not ready.exists():
        if server.poll() is not None or time.monotonic() > ends_s:
            raise RuntimeError(f"pdserve serve was not ready: exit status {server.poll()}")
        time.sleep(0.2)
    workers = json.loads(ready.read_text())["workers"]
    return {"launcher": server.pid} | {worker["id"]: worker["pid"] for worker in workers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=duration, default=20.0)
    parser.add_argument("serve", nargs="*", help="arguments of pdserve serve")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        model, ready = Path(directory) / "model", Path(directory) / "ready.json"
        make_model(model, ModelSpec(arch="llama"))
        command = [sys.executable, "-m", "deploy.cli", "serve", str(model), "--ready-file", str(ready)]
        command += ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", *args.serve]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            pids = wait_ready(server, ready)
            time.sleep(SETTLE_S)
            show(measure(pids, args.seconds), args.seconds)
            print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        finally:
            server.terminate()
            server.wait(60)


if __name__ == "__main__":
    main()
