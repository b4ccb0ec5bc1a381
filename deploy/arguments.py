"""What commands' flags have in common: numbers, pairs like tp=2,pp=1, what is required, and the output file."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pdserve.exit import ExitCode, StartError
from pdserve.settings import ConfigError

MAX_COUNT = 1_000_000
MAX_WHOLE = 10**18


def above_zero(text: str) -> float:
    """A number above 0; argparse tells the user otherwise."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0")
    return number


def count(text: str) -> int:
    """A whole number from 1 on."""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
    if not 1 <= number <= MAX_COUNT:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 to {MAX_COUNT:,}")
    return number


def whole(low: int, high: int = MAX_WHOLE) -> Callable[[str], int]:
    """Parses a whole number from `low` to `high`; argparse tells the user otherwise."""

    def parse(text: str) -> int:
        digits = text.removeprefix("-")
        number = int(text) if digits.isascii() and digits.isdecimal() and len(digits) < 20 else low - 1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least {low}, at most {high}")
        return number

    return parse


def api_key(text: str) -> str:
    """What can stand in a header; argparse tells the user otherwise, without the key."""
    if not (text and text.isascii() and text.isprintable() and " " not in text):
        raise argparse.ArgumentTypeError("it must be printable ASCII without spaces, at least one character")
    return text


def require(args: argparse.Namespace, names: Iterable[str], mode: str) -> None:
    """Raises ConfigError for every flag that the mode needs and was not given."""
    missing = [flag(name) for name in names if getattr(args, name) is None]
    if missing:
        raise ConfigError([f"{one} is missing; {mode} needs it" for one in missing])


def refuse(args: argparse.Namespace, names: Iterable[str], mode: str) -> None:
    """Raises ConfigError for every flag that was given and that the mode does not have."""
    given = [flag(name) for name in names if getattr(args, name) is not None]
    if given:
        raise ConfigError([f"{one} means nothing to {mode}" for one in given])


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def pairs(name: str, text: str, known: Mapping[str, str]) -> dict[str, str]:
    """`tp=2,pp=1` as names and values; names that are not given have their value in known."""
    found: dict[str, str] = {}
    for item in text.split(","):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or key not in known or key in found:
            example = ",".join(f"{one}={default or '...'}" for one, default in known.items())
            raise ConfigError([f"{flag(name)} is {text!r}; it must be like {example}, each name once"])
        found[key] = value
    return {**known, **found}


def pair_count(name: str, key: str, value: str) -> int:
    """A value of pairs that is a whole number."""
    try:
        return count(value)
    except argparse.ArgumentTypeError as error:
        raise ConfigError([f"{flag(name)}: {key}={error}"]) from None


def check_report(args: argparse.Namespace, other: str) -> list[str]:
    """What is wrong with --report, if it was given: its ending, or that it is the file of the `other` output too."""
    report, also = args.report, getattr(args, other)
    if report is None:
        return []
    problems = []
    if report.suffix not in (".html", ".png"):
        problems.append(f"--report is {report}; it must end in .html or .png")
    if also is not None and os.path.realpath(report) == os.path.realpath(also):
        problems.append(f"{flag(other)} is {also} and --report is {report}; they must not be the same file")
    return problems


def check_output(path: Path, flag: str = "--output") -> None:
    """Raises StartError (exit code 6) before the work, for a place where no file can be; leaves nothing there."""
    if os.path.isdir(path) or not os.path.isdir(path.parent):  # Path.is_dir raises for names that are too long
        reason = "is a directory" if os.path.isdir(path) else "its directory does not exist"
        raise StartError(f"{flag} is {path}; {reason}", ExitCode.OUTPUT)
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe's reader would see it opened and closed
        return
    try:
        fresh = not os.path.lexists(path)
        path.open("ab").close()
        if fresh:
            path.unlink()
    except OSError as error:
        raise StartError(f"{flag} is {path}; {error.strerror}", ExitCode.OUTPUT) from None


def write_output(path: Path, text: str, flag: str = "--output") -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StartError(f"{flag} is {path}; {error.strerror}", ExitCode.OUTPUT) from None
