"""The one error of this package: a trace or workload that cannot be used, exit code 5."""

from __future__ import annotations

from pathlib import Path

from pdserve.exit import ExitCode, StartError


class WorkloadError(StartError):
    """One line: where, what, its value, what is allowed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ExitCode.WORKLOAD)


def at_line(path: Path, line: int, message: str) -> WorkloadError:
    return WorkloadError(f"{path}:{line}: {message}")
