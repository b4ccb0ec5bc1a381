"""Sizes of memory as people write them."""

from __future__ import annotations

import argparse
import math

MAX_BYTES = 1 << 44
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
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


def size_in_words(count: float) -> str:
    """Three digits and the unit that shows them: `20 MiB`."""
    unit = 0
    while count >= 999.5 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.3g} {_UNITS[unit]}"
