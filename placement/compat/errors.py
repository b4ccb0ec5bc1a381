"""What these simulators cannot do, each with the exit code that the command gives for it."""

from __future__ import annotations

from pdserve.exit import ExitCode, StartError


class ProfileError(StartError):
    """A profile that is no profile, or that lacks what was asked of it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ExitCode.CONFIG)


class CannotServe(StartError):
    """Requests that the simulated cluster would never finish."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ExitCode.WORKLOAD)
