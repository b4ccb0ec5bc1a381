"""Numbers of things, in words."""

from __future__ import annotations


def counted(number: float, thing: str) -> str:
    """`1 worker`, `2,048 workers`, `0.5 GPUs`."""
    shown = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {thing}{'' if number == 1 else 's'}"
