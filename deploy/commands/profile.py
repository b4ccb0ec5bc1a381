"""`pdserve profile MODEL`: times steps and transfers of the real engine here, and fits the latency model."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.load.result import BadAnswer
from bench.served.server import ServerFailed
from deploy.arguments import above_zero, check_output, count, write_output
from deploy.commands.serve import configure_logging
from deploy.flags import add_worker_settings, serve_config, worker_flags
from deploy.machine import machine_in_words
from deploy.profile_report import report
from deploy.resolve import ResolvedServe, resolve
from deploy.stop_signals import sigterm_is_ctrl_c
from pdserve.clock import MonotonicClock
from pdserve.exit import ExitCode, StartError
from placement.latency.fitted_profile import Profile, Subject, make_profile, profile_to_json
from placement.simulator.cluster import LinkSpec

if TYPE_CHECKING:
    from bench.profiler.delays import Measured
    from bench.profiler.served import Served
    from bench.profiler.shapes import Limits
    from worker.assembly import BuiltEngine

BUDGET_S = 120.0
PROMPT_TOKENS = 256  # of the requests through served workers, at most
LONG_OUTPUT_TOKENS = 256  # of those that keep a decode worker busy, at most
_BUSY = 0.6  # of the cores, before anything is measured


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, what to measure, and the workers' settings as `serve` has them."""
    parser.add_argument("model", metavar="MODEL", help="directory or hub id of a checkpoint")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="PROFILE.json", help="the profile")
    parser.add_argument(
        "--budget-s",
        type=above_zero,
        default=BUDGET_S,
        metavar="S",
        help="for the steps; what follows takes 2 to 4 minutes more, --no-delays leaves it out (default: %(default)g)",
    )
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: the engine's own processor time, on a machine that others use; needs --threads 1 (default: wall)",
    )
    parser.add_argument("--no-transfers", action="store_true", help="do not time transfers")
    parser.add_argument("--no-delays", action="store_true", help="do not time what is outside steps and transfers")
    parser.add_argument(
        "--mock-delays",
        action="store_true",
        help="time that on the mock engine, to compare with mock clusters; on a GPU it always is",
    )
    parser.add_argument("--power-w", type=above_zero, metavar="W", help="of what one worker runs on, for plans")
    parser.add_argument("--cost-per-hour", type=above_zero, metavar="X", help="likewise, dollars")
    parser.add_argument("--shapes", type=count, metavar="N", help="only the first N steps of the grid")
    add_worker_settings(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, fit, write; Ctrl-C and SIGTERM end the measuring and keep what there is."""
    check_output(args.output)
    config = serve_config({name: value for name, value in vars(args).items() if name != "output"})
    configure_logging("WARNING")
    resolved = resolve(config)
    if args.clock == "cpu" and (resolved.worker.threads != 1 or resolved.devices[0] != "cpu"):
        raise StartError(
            "--clock is cpu; that needs --threads 1 and a CPU: one thread's time is a step's", ExitCode.CONFIG
        )
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > _BUSY * cores:
        print(
            f"the machine is busy (load {load:.1f} on {cores} cores): what is measured now is the others too",
            flush=True,
        )
    with sigterm_is_ctrl_c():
        profile = _measure(args, resolved)
    print("\n".join(report(profile)))
    write_output(args.output, json.dumps(profile_to_json(profile), indent=1) + "\n")
    print(f"profile: {args.output}")
    return ExitCode.OK if args.no_delays or profile.delays is not None else ExitCode.FAILED


def _measure(args: argparse.Namespace, resolved: ResolvedServe) -> Profile:
    # torch and the compiled kernels, and not before the flags are known to be right
    from bench.profiler.shapes import shapes
    from bench.profiler.steps import Clock, Visits, limits_of, measure_steps
    from worker.build import build_engine

    start = resolved.starts("")[-1]
    if start.processors:
        os.sched_setaffinity(0, start.processors)
    print(f"loading {resolved.served_name}: {resolved.worker.dtype}, {resolved.worker.threads} threads", flush=True)
    engine = build_engine(start, MonotonicClock())
    limits = limits_of(engine)
    visits = Visits(shapes(limits)[: args.shapes])
    clock: Clock = time.thread_time if args.clock == "cpu" else time.perf_counter
    bar = _bar("steps", len(visits.shapes))
    try:
        measure_steps(engine.core.runner, limits, visits, time.monotonic() + args.budget_s, bar, clock)
    except KeyboardInterrupt:
        print("\nstopped: the fit is of what was measured by now", flush=True)
        args.no_transfers = args.no_delays = True
    points = visits.points()
    if not points:
        raise StartError("no step was measured before the end: give more --budget-s")
    transport, transfers = _transfers(args, resolved, engine.layout.block_bytes)
    subject = _subject(args, resolved, engine)
    found = make_profile(subject, points, transfers, transport, complete=visits.complete)
    if args.no_delays:
        return found
    try:
        if args.mock_delays or resolved.devices[0] != "cpu":
            delays = _delays(found.link)
            return replace(found, delays=delays.split, colocated_delays=delays.colocated, mock=delays.mock)
        served = _served(args, resolved, found, limits, found.link or LinkSpec(1e12))
    except KeyboardInterrupt:
        print("\nstopped: the profile is without delays", flush=True)
        args.no_delays = True
        return found
    except StartError as error:
        print(f"pdserve profile: error: {error.message}\nthe profile is without delays", file=sys.stderr, flush=True)
        return found
    return replace(found, delays=served.delays.split, colocated_delays=served.delays.colocated, served=served.steps)


def _transfers(
    args: argparse.Namespace, resolved: ResolvedServe, block_bytes: int
) -> tuple[str | None, Sequence[tuple[int, float]]]:
    """Over what workers of one machine would use; between GPUs `pdserve doctor` measures links."""
    if args.no_transfers or resolved.devices[0] != "cpu":
        return None, ()
    from bench.profiler.transfers import measure_transfers

    wanted = resolved.worker.kv_transport
    transport = "shm" if wanted == "auto" else wanted
    print(f"transfers: {transport}", flush=True)
    return transport, measure_transfers(transport, block_bytes)


def _delays(link: LinkSpec | None) -> Measured:
    from bench.profiler.delays import measure_delays

    print("delays: one request at a time through two mock clusters", flush=True)
    with _log_dir("the mock engine", "--no-delays") as log_dir:
        return measure_delays(log_dir, link)


def _served(
    args: argparse.Namespace, resolved: ResolvedServe, found: Profile, limits: Limits, link: LinkSpec
) -> Served:
    from bench.profiler.served import Subject as ServedSubject
    from bench.profiler.served import measure_served

    assert found.subject is not None
    prompt_tokens = min(PROMPT_TOKENS, limits.chunk_tokens, limits.max_model_len // 2)
    long_tokens = min(4 * PROMPT_TOKENS, limits.max_model_len // 2)
    subject = ServedSubject(
        [args.model, *worker_flags(vars(args))],
        found.step_times,
        link,
        found.subject.kv_bytes_per_token,
        limits.chunk_tokens,
        prompt_tokens,
        long_tokens,
        min(LONG_OUTPUT_TOKENS, limits.max_model_len - long_tokens),
        (os.cpu_count() or 1) / (resolved.worker.threads or 1),
    )
    print(
        "served: one request at a time, colocated and split, then two workers at once; 2 to 4 minutes, or more",
        flush=True,
    )
    with _log_dir("the model", "--mock-delays") as log_dir:
        return measure_served(subject, log_dir)


@contextmanager
def _log_dir(what: str, instead: str) -> Iterator[Path]:
    """Of the clusters that are measured meanwhile. Errors: StartError where they do not start, answer, or in time."""
    known = (ServerFailed, BadAnswer, OSError)  # TimeoutError is an OSError
    with tempfile.TemporaryDirectory(prefix="pdserve-profile-") as name:
        try:
            yield Path(name)
        except (*known, ExceptionGroup) as error:
            why: BaseException = error
            while isinstance(why, BaseExceptionGroup):  # of clients side by side
                why = why.exceptions[0]
            if not isinstance(why, known):
                raise
            said = str(why) or type(why).__name__
            raise StartError(f"{what} could not be served: {said}; {instead} does without") from None


def _subject(args: argparse.Namespace, resolved: ResolvedServe, engine: BuiltEngine) -> Subject:
    runner: Any = engine.core.runner
    layout = engine.layout
    return Subject(
        model=resolved.served_name,
        kv_bytes_per_token=layout.block_bytes // layout.block_size,
        weight_bytes=int(getattr(getattr(runner, "model", None), "weight_bytes", 0)),
        dtype=str(resolved.worker.dtype),
        device=resolved.devices[0],
        threads=int(resolved.worker.threads or 1),
        kernels=str(getattr(getattr(getattr(runner, "model", None), "kernels", None), "name", "gpu")),
        machine=machine_in_words(),
        power_w=args.power_w,
        cost_per_hour=args.cost_per_hour,
    )


def _bar(what: str, num_shapes: int) -> Callable[[int, int], None]:
    """A progress bar on a terminal; one round over all shapes is a whole result, more make it surer."""
    from tqdm import tqdm

    bar = tqdm(total=num_shapes, desc=what, unit="shape", leave=False, disable=None)

    def watch(done: int, total: int) -> None:
        rounds, at = divmod(done, num_shapes)
        bar.n = num_shapes if done and not at else at
        bar.set_postfix_str(f"round {rounds + 1} of up to {total // num_shapes}")

    return watch
