"""Served benchmark: pdserve, and vLLM on the CPU where its environment exists, under the same load.

    python -m bench.served --model tiny --workload 512x64 --concurrency 1 32 --vllm-env DIR

Systems start one at a time, and are then held stopped (SIGSTOP) but for the one that is measured; rounds alternate
(A B C, A B C, ...). Prompts are random token ids, the same for every system in a round. Time is the client's clock:
TTFT from writing the request to the first event, TPOT (last event - first event) / (tokens - 1).
What the systems are: bench/served/systems.py. The environment of vLLM: docs/benchmarks-vllm.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.arguments import positive
from bench.reference_models import REFERENCE_MODELS
from bench.served.comparison import agreement_lines, median_lines, outcome_lines, ratio_lines
from bench.served.load import Load, Outcome, greedy_tokens, prompts_of, run_load
from bench.served.process_tree import adopt_orphans, hear_signals
from bench.served.server import Server, ServerFailed, stop_all
from bench.served.systems import OURS, THEIRS, Setting, make_server, settle

SHAPE_FLAGS = {  # of make_model, and what they are called in its spec
    "arch": "arch", "layers": "num_layers", "hidden": "hidden_size", "intermediate": "intermediate_size",
    "heads": "num_heads", "kv-heads": "num_kv_heads", "head-dim": "head_dim", "vocab": "vocab_size",
    "max-len": "max_position_embeddings",
}  # fmt: skip
START_LIMIT_S = 600.0  # a busy machine starts two vLLM servers in 4 minutes
CHECKED_PROMPTS, CHECKED_TOKENS = 4, 24


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.served", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help="tiny (28 M), small (Qwen3-0.6B shape), or a model directory")
    parser.add_argument("--workload", nargs="+", type=workload, default=[(512, 64)], metavar="INxOUT")
    parser.add_argument("--concurrency", nargs="+", type=positive, default=[1, 32])
    parser.add_argument("--systems", nargs="+", choices=[*OURS, *THEIRS], help="default: all that can run here")
    parser.add_argument("--rounds", type=positive, default=2)
    parser.add_argument("--requests", type=int, help="of each load (default: 3 x concurrency, at least 8)")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--max-model-len", type=positive, default=2048)
    parser.add_argument("--kv-gib", type=positive, help="KV memory of each worker (default: 1, for small 3)")
    parser.add_argument("--cores", type=int, nargs=2, help="the two cores (default: the first two)")
    parser.add_argument("--vllm-env", type=Path, metavar="DIR", help="what bench.served.make_vllm_env made")
    parser.add_argument("--pdserve-args", default="", metavar="'...'", help="more flags for pdserve serve")
    parser.add_argument("--work-dir", type=Path, help="made models and logs stay there (default: a temporary one)")
    return parser.parse_args(arguments)


def workload(text: str) -> tuple[int, int]:
    given, _, wanted = text.partition("x")
    return int(given), int(wanted)


def make_model(name: str, dtype: str, directory: Path) -> Path:
    """The directory of a made shape, made if missing; or the given directory."""
    spec = REFERENCE_MODELS.get(name)
    if spec is None:
        return Path(name).resolve()
    made = directory / f"{name}-{dtype}"
    if not (made / "tokenizer.json").exists():
        # in a process of its own: the client that measures stays without torch
        flags = [f"--{flag}={getattr(spec, field)}" for flag, field in SHAPE_FLAGS.items()]
        flags += ["--tie-word-embeddings"] if spec.tie_word_embeddings else []
        command = [sys.executable, "-m", "deploy.models.make_model", str(made), *flags, "--dtype", dtype, "--force"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return made


def usable_systems(asked: Sequence[str] | None, vllm_env: Path | None) -> list[str]:
    """What is asked for, or all; vLLM's only with an environment, and said so."""
    names = list(asked or [*OURS, *THEIRS])
    if vllm_env is not None and not (vllm_env / "bin" / "vllm").exists():
        sys.exit(f"--vllm-env is {vllm_env}; it must be a directory that bench.served.make_vllm_env made")
    if vllm_env is None and (left_out := [name for name in names if name in THEIRS]):
        print(f"no --vllm-env: {', '.join(left_out)} left out, ours runs alone (docs/benchmarks-vllm.md)")
        names = [name for name in names if name in OURS]
    if not names:
        sys.exit("--systems names nothing that can run here")
    return names


@contextmanager
def all_started(names: Sequence[str], setting: Setting, log_dir: Path) -> Iterator[list[Server]]:
    """Every system started, alone, and parked; all are ended in the end, whatever happened."""
    servers: list[Server] = []
    try:
        for name in names:
            server = make_server(name, setting, log_dir)
            servers.append(server)
            server.start()
            took_s = server.await_ready(START_LIMIT_S)
            settle(server, setting)
            server.park()
            print(f"{name} was ready after {took_s:.0f} s", flush=True)
        yield servers
    finally:
        stop_all(servers)


def measure(servers: Sequence[Server], loads: Sequence[Load], num_rounds: int) -> dict[tuple[str, Load], list[Outcome]]:
    """All rounds, printed as they come, and the check of tokens before the first."""
    rounds: dict[tuple[str, Load], list[Outcome]] = {}
    tokens = {}
    checked = prompts_of(Load(loads[0].input_tokens, CHECKED_TOKENS, 1, CHECKED_PROMPTS), CHECKED_PROMPTS, "check")
    for number in range(num_rounds):
        print(f"\nround {number + 1} of {num_rounds}; times are mean/p50/p90/p99", flush=True)
        for server in servers:
            server.resume()
            if number == 0:
                tokens[server.name] = greedy_tokens(server, checked, CHECKED_TOKENS)
            for load in loads:
                outcome = run_load(server, load, f"round {number}")
                rounds.setdefault((server.name, load), []).append(outcome)
                print("\n".join(outcome_lines(server.name, load, outcome)), flush=True)
            server.park()
    print("\n" + "\n".join(agreement_lines(tokens, servers[0].name)))
    return rounds


def run(args: argparse.Namespace, work_dir: Path) -> int:
    begin_s = time.monotonic()
    names = usable_systems(args.systems, args.vllm_env)
    cores = tuple(args.cores or sorted(os.sched_getaffinity(0))[:2])
    if len(cores) != 2:
        sys.exit("two cores are needed")
    setting = Setting(
        make_model(args.model, args.dtype, work_dir), args.dtype, args.max_model_len,
        args.kv_gib or (3 if args.model == "small" else 1), (cores[0], cores[1]),
        args.vllm_env.absolute() if args.vllm_env else None, args.pdserve_args.split(),
    )  # fmt: skip
    loads = [
        Load(given, wanted, concurrency, args.requests or max(8, 3 * concurrency))
        for given, wanted in args.workload
        for concurrency in args.concurrency
    ]
    machine = f"cores {cores[0]} and {cores[1]} of {os.cpu_count()}, load {os.getloadavg()[0]:.1f}"
    print(f"{args.model}, {args.dtype}, {machine}", flush=True)
    try:
        with all_started(names, setting, work_dir) as servers:
            rounds = measure(servers, loads, args.rounds)
    except ServerFailed as error:
        print(f"bench.served: {error}", file=sys.stderr)
        return 1
    print("\n".join(["", *median_lines(rounds), "", *ratio_lines(rounds)]))
    print(f"\nin all {time.monotonic() - begin_s:.0f} s")
    return int(any(outcome.errors for outcomes in rounds.values() for outcome in outcomes))


def main() -> int:
    args = parse()
    adopt_orphans()
    hear_signals()
    try:
        if args.work_dir is not None:
            args.work_dir.mkdir(parents=True, exist_ok=True)
            return run(args, args.work_dir.absolute())
        with tempfile.TemporaryDirectory(prefix="bench-served-") as name:
            return run(args, Path(name))
    except KeyboardInterrupt:
        print("bench.served: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
