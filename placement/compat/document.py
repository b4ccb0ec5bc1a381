"""A JSON file and the way to each value in it, so that a message can name the one that is wrong."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from placement.compat.errors import ProfileError


def read_document(path: Path) -> Node:
    """Raises ProfileError, one line, where the file cannot be read or is not JSON."""
    try:
        return Node(json.loads(path.read_text(encoding="utf-8")), str(path))
    except OSError as error:
        raise ProfileError(f"--profile is {path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"--profile is {path}: not JSON: {error}") from None


@dataclass(frozen=True, slots=True)
class Node:
    """A value of the document and the way to it."""

    value: Any
    where: str

    def wrong(self, allowed: str) -> ProfileError:
        shown = repr(self.value)
        return ProfileError(
            f"{self.where} is {shown if len(shown) <= 60 else shown[:57] + '...'}; it must be {allowed}"
        )

    def names(self) -> list[str]:
        if not isinstance(self.value, dict):
            raise self.wrong("a JSON object")
        return list(self.value)

    def get(self, name: str) -> Node:
        if name not in self.names():
            raise ProfileError(f"{self.where}: {name!r} is missing")
        return Node(self.value[name], f"{self.where}: {name}" if ": " not in self.where else f"{self.where}.{name}")

    def items(self, num: int | None = None) -> list[Node]:
        if not isinstance(self.value, list) or num not in (None, len(self.value)):
            raise self.wrong("a list" if num is None else f"a list of {num}")
        return [Node(one, f"{self.where}[{index}]") for index, one in enumerate(self.value)]

    def count(self) -> int:
        if not isinstance(self.value, int) or isinstance(self.value, bool) or not 1 <= self.value < 1 << 53:
            raise self.wrong("a whole number, at least 1")
        return self.value

    def number(self) -> float:
        good = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        if not good or not math.isfinite(self.value):
            raise self.wrong("a number")
        return float(self.value)
