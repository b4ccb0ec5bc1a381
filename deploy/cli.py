"""`pdserve`: finds the subcommand, imports only what it needs, and turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import pdserve
from deploy.config_file import suggestion
from pdserve.exit import ExitCode, StartError
from pdserve.settings import ConfigError

COMMANDS = {
    "serve": "serve a model: router, prefill workers and decode workers",
    "generate": "stream a completion from a running server",
    "bench": "send load to a server, ours or any OpenAI one, and tell how it did",
    "profile": "time the engine's steps and transfers on this machine and fit the latency model",
    "simulate": "run requests through one placement, under a virtual clock",
    "plan": "search the placement that serves the most requests within their targets",
    "demo": "serve the model that ships with pdserve and send it a few requests",
    "doctor": "check this machine and measure every prefill-decode link, or look at a running cluster",
    "observability": "write Prometheus, Alertmanager and Grafana files for a cluster",
    "make-model": "write a model with random weights, for tests and measurements",
}
"""Name -> what it does; each lives in deploy/commands/<name>.py as add_arguments(parser) and run(args) -> exit code."""

_CLIENTS = ("generate", "bench")
_SERVER_ELSEWHERE = {"--url", "--base-url", "--endpoint", "--host"}  # what others' load generators call it


class Parser(argparse.ArgumentParser):
    """Errors are one line, with a suggestion for a flag that is spelled wrong."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: -"):
            unknown = message.split()[2].split("=", maxsplit=1)[0]
            flags = {
                flag.lstrip("-").replace("-", "_") for flag in self._option_string_actions if flag.startswith("--")
            }
            elsewhere = "; did you mean --server?" if unknown in _SERVER_ELSEWHERE and "server" in flags else ""
            near = suggestion(unknown, flags).replace("mean ", "mean --")
            message = f"{unknown} is not a flag{elsewhere or near}"
        fail(self.prog, message)
        sys.exit(ExitCode.CONFIG)


def fail(program: str, message: str) -> None:
    """One line on standard error."""
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr)


def overview() -> str:
    lines = [f"  {name:<13} {does}" for name, does in COMMANDS.items()]
    about = ["usage: pdserve COMMAND ...", "", pdserve.__doc__ or "", "", "commands:"]
    return "\n".join([*about, *lines, "", "`pdserve COMMAND --help` tells more."])


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point of the `pdserve` program; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0] if given else ""
    if name in ("--version", "-V"):
        print(f"pdserve {pdserve.__version__}")
        return ExitCode.OK
    if name in ("--help", "-h", "help"):
        print(overview())
        return ExitCode.OK
    if name not in COMMANDS:
        what = f"{name!r} is not a command{suggestion(name, set(COMMANDS))}" if name else "a command is missing"
        fail("pdserve", f"{what}; commands are {', '.join(COMMANDS)}")
        return ExitCode.CONFIG
    return _run(name, given[1:])


def _run(name: str, arguments: list[str]) -> int:
    program = f"pdserve {name}"
    if name in _CLIENTS and "grpc" not in sys.modules:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC prints a line of its own above our error
    command = importlib.import_module("deploy.commands." + name.replace("-", "_"))
    parser = Parser(prog=program, description=COMMANDS[name], allow_abbrev=False)
    command.add_arguments(parser)
    args = parser.parse_args(arguments)
    try:
        return int(command.run(args))
    except ConfigError as error:
        for problem in error.problems:
            fail(program, problem)
        return ExitCode.CONFIG
    except StartError as error:
        fail(program, error.message)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has left
        sys.stderr.close()
        return ExitCode.FAILED
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
