"""Files and requests of a validation, looked at before anything starts: what cannot be used is told with its flag."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path

from pdserve.exit import ExitCode, StartError
from pdserve.settings import ConfigError
from placement.latency.fitted_profile import Profile
from placement.workload import WorkloadSource, parse_workload_spec

_SAMPLE = 1000  # requests, to see how long they may be


@contextmanager
def flagged(flag: str, path: Path, code: ExitCode = ExitCode.WORKLOAD) -> Iterator[None]:
    """What is wrong with the file of a flag, as one line that names both. Errors: StartError."""
    try:
        yield
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        why = f"not JSON: {why}" if isinstance(error, JSONDecodeError) else why
        raise StartError(f"{flag} is {path}; {why.removeprefix(f'{path}: ')}", code) from None


def check_json(path: Path) -> None:
    """Now, not after an hour's runs. Errors: StartError."""
    with flagged("--json", path, ExitCode.OUTPUT):
        path.open("ab").close()


def check_profile(path: Path, profile: Profile, mock: bool) -> None:
    """Errors: ConfigError where its delays are not those of the engine that will run."""
    if mock and profile.served is not None:
        raise ConfigError(
            [f"--profile is {path}; its delays are the real engine's: `pdserve profile --mock-delays` measures the "
             "mock engine's, MODEL runs the real one"]
        )  # fmt: skip


def requests_for(args: argparse.Namespace) -> WorkloadSource:
    """--workload. Errors: ConfigError, WorkloadError."""
    source = WorkloadSource(parse_workload_spec(args.workload))
    some = source.recorded or source.build(rate=1.0, num_requests=_SAMPLE)
    if (longest := int((some.prompt_tokens + some.output_tokens).max())) > args.max_model_len:
        raise ConfigError(
            [f"--max-model-len is {args.max_model_len:,}; the workload's longest request has {longest:,} tokens"]
        )
    return source
