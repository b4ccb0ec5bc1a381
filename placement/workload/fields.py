"""Checked fields of one line of JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from placement.workload.errors import WorkloadError, at_line
from placement.workload.request import MAX_TOKENS

TOO_LARGE = 1e18


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object and where it stood; what it lacks or has wrong is one error that says so."""

    path: Path
    line: int
    values: Mapping[str, Any]

    @classmethod
    def parse(cls, path: Path, line: int, text: str) -> Fields:
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise at_line(path, line, f"not JSON: {error.msg} at column {error.colno}: {shown(text)}") from None
        except ValueError as error:  # a number of thousands of digits
            raise at_line(path, line, f"not JSON: {error}") from None
        except RecursionError:
            raise at_line(path, line, "not JSON that can be read: nested too deeply") from None
        if not isinstance(values, dict):
            raise at_line(path, line, f"is {shown(values)}; a line must be a JSON object")
        return cls(path, line, values)

    def error(self, message: str) -> WorkloadError:
        return at_line(self.path, self.line, message)

    def present(self, *names: str) -> str | None:
        """The first of the names that the object has."""
        return next((name for name in names if self.values.get(name) is not None), None)

    def require(self, *names: str) -> str:
        found = self.present(*names)
        if found is None:
            has = ", ".join(map(repr, list(self.values)[:12])) or "no field"
            raise self.error(f"{' or '.join(map(repr, names))} is missing; the line has {has}")
        return found

    def number(self, name: str, low: float = 0.0) -> float:
        value = self.values[name]
        good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < TOO_LARGE
        if not good or math.isnan(value) or value < low:
            raise self.error(f"{name} is {shown(value)}; it must be a number, at least {low:g} and below {TOO_LARGE:g}")
        return float(value)

    def tokens(self, name: str, low: int = 1) -> int:
        value = self.values[name]
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= MAX_TOKENS:
            raise self.error(f"{name} is {shown(value)}; it must be a whole number from {low} to {MAX_TOKENS:,}")
        return value

    def word(self, name: str, default: str) -> str:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.error(f"{name} is {shown(value)}; it must be text")
        return value

    def block_ids(self, name: str, prompt_tokens: int, block_tokens: int) -> tuple[int, ...]:
        """Ids of a prompt's blocks; no more than the prompt has."""
        value = self.values.get(name)
        if value is None:
            return ()
        good = isinstance(value, list) and all(type(one) is int and -(1 << 63) <= one < 1 << 63 for one in value)
        if not good:
            raise self.error(f"{name} is {shown(value)}; it must be a list of whole numbers of 64 bits")
        most = -(-prompt_tokens // block_tokens)
        if len(value) > most:
            raise self.error(
                f"{name} has {len(value)} ids; a prompt of {prompt_tokens} tokens has at most {most} blocks "
                f"of {block_tokens}"
            )
        return tuple(value)


def shown(value: Any) -> str:
    """Of any length: its begin."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
