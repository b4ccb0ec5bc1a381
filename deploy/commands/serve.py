"""`pdserve serve MODEL`: a cluster on this machine, or through Ray, until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from deploy.flags import add_settings, serve_config
from deploy.machine import check_can_listen, raise_open_files
from deploy.ray_cluster.cluster import check_ray_installed
from deploy.ready_file import ReadyInfo, prepare_ready_file, remove_if_stale, write_ready_file
from deploy.record_sinks import check_sinks
from deploy.resolve import ResolvedServe, resolve
from deploy.serve import Serving
from deploy.stop_signals import StopSignals
from deploy.words import counted
from pdserve.config import ServeConfig
from pdserve.exit import ExitCode
from pdserve.settings import ConfigError

log = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130  # Ctrl-C before anything was served


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, --config, and a flag for every setting."""
    parser.add_argument(
        "model", nargs="?", default=argparse.SUPPRESS, metavar="MODEL", help="directory or hub id of a checkpoint"
    )
    parser.add_argument("--config", type=Path, metavar="F.yaml", help="settings, named as the flags; flags win")
    parser.add_argument(
        "--plan",
        type=Path,
        metavar="F.json",
        help="what `pdserve plan -o` wrote, or a JSON object of settings (prefill, decode, ...); over --config",
    )
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    """Check everything, then start; returns the exit code."""
    if (given := vars(args).get("ready_file")) is not None:
        remove_if_stale(Path(given))
    config = serve_config(vars(args), args.config, args.plan)
    if config.ready_file is not None:
        remove_if_stale(Path(config.ready_file))
    configure_logging()
    resolved = resolve(config)
    prepare(config)
    return asyncio.run(serve_until_stopped(resolved, args.plan))


def configure_logging(default_level: str = "INFO") -> None:
    """Our log, on standard error; PDSERVE_LOG_LEVEL sets how much of it."""
    level = os.environ.get("PDSERVE_LOG_LEVEL", default_level).upper()
    if level not in logging.getLevelNamesMapping():
        raise ConfigError([f"PDSERVE_LOG_LEVEL is {level!r}; it must be DEBUG, INFO, WARNING or ERROR"])
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)


def prepare(config: ServeConfig) -> None:
    """What would fail later anyway, found before a model is loaded: ports, limits, the ready file."""
    if config.ray is not None:
        check_ray_installed()
    raise_open_files()
    check_can_listen("--grpc", config.router.grpc)
    check_can_listen("--http", config.router.http)
    check_sinks(config.router)
    if config.ready_file is not None:
        prepare_ready_file(Path(config.ready_file))


async def serve_until_stopped(resolved: ResolvedServe, plan: Path | None = None) -> int:
    """Serve until the first signal, drain, stop; a second signal cuts the draining short.

    FAILED when the cluster could serve nobody any more when it was stopped.
    """
    signals = StopSignals()
    signals.install()
    serving = Serving(resolved, plan)
    log.info(
        "serving %s: %s, context %d tokens, %d prefill and %d decode workers",
        resolved.served_name,
        resolved.worker.dtype,
        resolved.max_model_len,
        resolved.config.prefill,
        resolved.config.decode,
    )
    try:
        info = await signals.unless_asked(serving.start())
        if info is None:
            log.info("stopping before it was ready")
            return EXIT_INTERRUPTED
        with _announced(resolved.config.ready_file, info):
            await signals.asked.wait()
            broken = serving.why_not_ready()
            log.info("stopping: running requests get %g s", resolved.config.router.drain_timeout_s)
            await signals.unless_forced(serving.drain())
    finally:
        await signals.unless_forced(serving.close())
        await serving.close(grace_s=0.1)  # what a second signal cut short
    if broken:
        log.error("stopped, and nothing was served any more: %s", broken)
        return ExitCode.FAILED
    return ExitCode.OK


@contextlib.contextmanager
def _announced(ready_file: str | None, info: ReadyInfo) -> Iterator[None]:
    """One line on standard output, and the ready file for as long as it is true."""
    if ready_file is not None:
        write_ready_file(Path(ready_file), info)
    http = f", HTTP http://{info.http}" if info.http is not None else ""
    print(f"ready: {info.model}, gRPC {info.grpc}{http}, {counted(len(info.workers), 'worker')}", flush=True)
    try:
        yield
    finally:
        if ready_file is not None:
            Path(ready_file).unlink(missing_ok=True)
