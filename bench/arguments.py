"""Numbers on benchmarks' command lines."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A whole number from 1 on; argparse tells the user otherwise."""
    number = int(text) if text.strip().isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least 1")
    return number


def duration(text: str) -> float:
    """Seconds above 0."""
    return _above_zero(text, "number of seconds")


def per_second(text: str) -> float:
    """Requests per second, above 0."""
    return _above_zero(text, "rate in requests per second")


def _above_zero(text: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a {what} above 0")
    return number
