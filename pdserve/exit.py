"""How a process of pdserve ends: exit codes, and the error that carries one."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the shell sees (part of the public contract)."""

    OK = 0
    FAILED = 1  # anything that has no code of its own
    CONFIG = 2  # arguments or configuration
    ENVIRONMENT = 3  # port, GPU, limits of this machine
    MODEL = 4  # model directory
    WORKLOAD = 5  # trace or workload file
    OUTPUT = 6  # a file that cannot be written


class StartError(Exception):
    """A command cannot go on; the message is one line: what, where, value, what is allowed."""

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
