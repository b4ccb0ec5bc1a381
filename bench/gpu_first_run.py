"""Everything that a first hour on a GPU should try, in one command of at most ten minutes.

    python -m bench.gpu_first_run [--out FOLDER] [--budget 570] [PART...]

    machine     card, driver, releases of torch, CUDA, NCCL, Triton
    kernels     attention and KV kernels on the device beside the reference
    engine      runner, graphs, sampling, streams: the rest of tests/engine/gpu
    transports  copies, pinned memory, handles, NCCL; the contract with pools on the GPU; peers that are killed
    worker      a worker's pool in its share of the card, and a split inside one process
    step        decode bandwidth and prefill rate of the 8B shape beside the card's own (bench.gpu_step)
    split       P and D as two processes on the card, cuda_ipc and staged, beside colocated (bench.gpu_split)
    serve       `pdserve serve --device cuda` and one completion, where the front door's libraries are installed

Each part is a process with a limit of its own; one that fails or hangs is told and the next begins. Logs go to FOLDER;
the last lines printed are a table. It needs neither Ray nor a web server. Ends with 1 when a part failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.arguments import duration

ROOT = Path(__file__).resolve().parents[1]
SHOWN_LINES = 25  # of each part's log
PYTEST = (
    sys.executable,
    "-m",
    "pytest",
    "-q",
    "--timeout=90",
    "--maxfail=15",
    "-p",
    "no:cacheprovider",
    "-W",
    "default",
)
TRANSPORTS = "tests/kv_transfer/gpu"


@dataclass(frozen=True, slots=True)
class Part:
    """One process."""

    name: str
    command: tuple[str, ...]
    limit_s: float


PARTS = (
    Part("machine", (sys.executable, "-m", "bench.gpu_machine"), 60),
    Part("kernels", (*PYTEST, "tests/engine/gpu/test_kernels.py"), 150),
    Part("engine", (*PYTEST, "tests/engine/gpu", "--ignore=tests/engine/gpu/test_kernels.py"), 200),
    Part("transports", (*PYTEST, "-m", "gpu", TRANSPORTS), 150),
    Part("worker", (*PYTEST, "-m", "gpu", "tests/worker/gpu"), 90),
    Part(
        "step",
        (
            sys.executable, "-m", "bench.gpu_step", "--batches", "1", "32", "128", "--contexts", "512", "4096",
            "--prompts", "512", "2048", "8192", "--tries", "10", "--steps", "20",
        ),
        180,
    ),
    Part("split", (sys.executable, "-m", "bench.gpu_split"), 200),
    Part("serve", (sys.executable, "-m", "bench.gpu_serve"), 120),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a part ended."""

    name: str
    how: str  # "ok", "failed (1)", "over its limit", "not begun"
    seconds: float


def run_part(part: Part, out: Path, limit_s: float) -> Outcome:
    """Its output goes to a file; its whole process group ends with it."""
    began = time.monotonic()
    with (out / f"{part.name}.log").open("wb") as log:
        process = subprocess.Popen(
            part.command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(limit_s)
            how = "ok" if code == 0 else f"failed ({code})"
        except subprocess.TimeoutExpired:
            how = f"over its limit of {limit_s:.0f} s"
        finally:
            _end(process)
    return Outcome(part.name, how, time.monotonic() - began)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Whatever is left of it and of what it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # nobody is left
    process.wait()


def run_all(parts: Sequence[Part], out: Path, budget_s: float) -> list[Outcome]:
    """One after the other, as long as there is time."""
    end = time.monotonic() + budget_s
    outcomes = []
    for part in parts:
        left = end - time.monotonic()
        if left < 1:
            outcomes.append(Outcome(part.name, "not begun: no time left", 0.0))
            continue
        print(f"== {part.name}: {' '.join(part.command[1:])}", flush=True)
        outcomes.append(run_part(part, out, min(part.limit_s, left)))
        lines = (out / f"{part.name}.log").read_text(errors="replace").splitlines()
        print("\n".join(lines[-SHOWN_LINES:]), flush=True)
    return outcomes


def main(arguments: list[str] | None = None) -> int:
    """Run the parts, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in PARTS]
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(names)}")
    parser.add_argument("--out", type=Path, default=Path("gpu-first-run"), help="folder for the logs")
    parser.add_argument("--budget", type=duration, default=570.0, help="seconds for all of it")
    args = parser.parse_args(arguments)
    wrong = set(args.parts) - set(names)
    if wrong:
        parser.error(f"{min(wrong)!r} is not a part; there are {', '.join(names)}")
    if not torch.cuda.is_available():
        print("bench.gpu_first_run: no GPU here (torch.cuda.is_available() is false): nothing run", file=sys.stderr)
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    outcomes = run_all([part for part in PARTS if not args.parts or part.name in args.parts], args.out, args.budget)
    print("\n| part | ended | seconds |\n|---|---|---|")
    for one in outcomes:
        print(f"| {one.name} | {one.how} | {one.seconds:.0f} |")
    return 0 if all(one.how == "ok" for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
