"""`pdserve observability -o DIR`: Prometheus, Alertmanager and Grafana files for a cluster and a target."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from deploy.observability.bundle import Bundle
from deploy.ready_file import read_ready_file
from pdserve.exit import ExitCode, StartError
from pdserve.settings import ConfigError, address_problems

DEFAULT_ROUTER = "127.0.0.1:8000"
_DURATION = re.compile(r"[1-9]\d*(ms|s|m)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to, for which cluster, for which promise."""
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="directory for the files")
    parser.add_argument(
        "--target", type=float, default=0.9, metavar="X",
        help="share of requests that shall meet their SLO, between 0.5 and 1 (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--ready-file", type=Path, metavar="F", help="of the running cluster: its address and model")
    parser.add_argument(
        "--http", action="append", metavar="HOST:PORT",
        help=f"a router's HTTP address, as Prometheus reaches it; may be repeated (default: {DEFAULT_ROUTER})",
    )  # fmt: skip
    parser.add_argument("--model", metavar="NAME", help="label of every series (default: the ready file's, or pdserve)")
    parser.add_argument(
        "--workers", action="store_true", help="scrape every worker's own port too (the router shows their series)"
    )
    parser.add_argument(
        "--credentials-file", metavar="PATH", help="that holds the server's --api-key, for Prometheus to read"
    )
    parser.add_argument("--scrape-interval", default="5s", metavar="T", help="such as 1s or 15s (default: %(default)s)")
    parser.add_argument("--alertmanager", default="127.0.0.1:9093", metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument(
        "--prometheus",
        default="127.0.0.1:9090",
        metavar="HOST:PORT",
        help="as Grafana reaches it (default: %(default)s)",
    )
    parser.add_argument(
        "--grafana-dashboards", default="/etc/grafana/dashboards/pdserve", metavar="PATH",
        help="where Grafana will find the dashboards (default: %(default)s)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Write everything; returns the exit code."""
    bundle = _bundle(args)
    files = bundle.files()
    try:
        for name, text in files.items():
            path = args.output / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StartError(f"--output is {args.output}; {error.strerror}", ExitCode.OUTPUT) from None
    print(f"wrote {len(files)} files to {args.output}; next: prometheus --config.file={args.output}/prometheus.yml")
    return ExitCode.OK


def _bundle(args: argparse.Namespace) -> Bundle:
    ready = read_ready_file(args.ready_file) if args.ready_file is not None else None
    known = [ready.http] if ready is not None and ready.http is not None else []
    routers = args.http or known or [DEFAULT_ROUTER]
    problems = [problem for address in routers for problem in address_problems("--http", address)]
    problems += address_problems("--alertmanager", args.alertmanager)
    problems += address_problems("--prometheus", args.prometheus)
    if not 0.5 <= args.target < 1.0:
        problems.append(f"--target is {args.target:g}; it must be from 0.5 to below 1, such as 0.9 or 0.99")
    if not _DURATION.fullmatch(args.scrape_interval):
        problems.append(f"--scrape-interval is {args.scrape_interval!r}; it must be like 500ms, 5s or 1m")
    if problems:
        raise ConfigError(problems)
    return Bundle(
        target=args.target,
        routers=tuple(routers),
        model=args.model or (ready.model if ready is not None else "pdserve"),
        scrape_interval=args.scrape_interval,
        workers=args.workers,
        credentials_file=args.credentials_file,
        alertmanager=args.alertmanager,
        prometheus=args.prometheus,
        dashboards=args.grafana_dashboards,
    )
