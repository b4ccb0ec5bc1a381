"""Dataclasses of numbers from JSON: what is missing, unknown or out of range is an error that says where."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from typing import TypeVar

from placement.latency.served import Extras
from placement.simulator.cluster import Jitter, Slowdown, Warming

T = TypeVar("T")
_SIGNED = {"fronts_s"}  # differences
_WITHIN: dict[str, type] = {"Extras": Extras, "Slowdown": Slowdown, "Warming": Warming, "Jitter": Jitter}
_VERSION = "of another version? `pdserve profile` measures again"


def items_of(given: object, where: str) -> list[tuple[object, object]]:
    """Of an object of JSON."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: expected an object, found {type(given).__name__}")
    return list(given.items())


def check_known(given: Iterable[str], known: Collection[str], where: str) -> None:
    """Errors: ValueError naming a key that there is not."""
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{where}: {unknown[0]} is not known; there are {', '.join(known)} ({_VERSION})")


def made(kind: type[T], given: object, where: str) -> T:
    """A dataclass of numbers, words, lists of numbers and those of _WITHIN from its JSON object."""
    values = {str(name): value for name, value in items_of(given, where)}
    known = {one.name: str(one.type) for one in fields(kind)}  # type: ignore[arg-type]  # every kind here is one
    check_known(values, known, where)
    if missing := sorted(set(known) - set(values)):
        raise ValueError(f"{where}: {missing[0]} is missing ({_VERSION})")
    for name, value in values.items():
        values[name] = _checked(known[name], value, f"{where}: {name}", -math.inf if name in _SIGNED else 0.0)
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _checked(kind: str, value: object, where: str, least: float = 0.0) -> object:
    if value is None and "None" in kind:
        return None
    if kind in _WITHIN:
        return made(_WITHIN[kind], value, where)
    if kind.startswith("tuple"):
        if not isinstance(value, list):
            raise ValueError(f"{where} is {value!r}; it must be a list of numbers")
        return tuple(_checked("float", one, where, least) for one in value)
    if kind == "str":
        if not isinstance(value, str):
            raise ValueError(f"{where} is {value!r}; it must be text")
        return value
    number = isinstance(value, int if kind == "int" else int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < least:  # type: ignore[arg-type, operator]  # it is a number
        raise ValueError(f"{where} is {value!r}; it must be a {'whole ' if kind == 'int' else ''}number of at least 0")
    return value if kind == "int" else float(value)  # type: ignore[arg-type]
