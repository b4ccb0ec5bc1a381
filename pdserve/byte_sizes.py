"""Sizes of memory as people write them."""

from __future__ import annotations

import argparse
import math

MAX_BYTES = 1 << 44
_SUFFIXES = {"k": 10, "m": 20, "g": 30, "t": 40}


def bytes_of(text: str) -> float:
    """A number of bytes: 536870912, 512M, 1.5g, 2GiB; powers of 1024. Errors: ValueError."""
    number = text.strip().lower().removesuffix("b").removesuffix("i")
    power = _SUFFIXES.get(number[-1:], 0)
    return float(number[:-1] if power else number) * (1 << power)


def memory_size(text: str) -> float:
    """Bytes above 0; argparse tells the user otherwise."""
    try:
        number = bytes_of(text)
    except (ValueError, OverflowError):
        number = math.nan
    if not 0 < number <= MAX_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r} must be bytes above 0, like 536870912 or 512M, at most 16T")
    return number
