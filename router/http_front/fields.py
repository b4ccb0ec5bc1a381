"""Strictly typed reading of a JSON object, field by field; what nobody has read in the end is unknown.

Strict: a boolean is no number, "5" is no number, 5.0 is no integer. null is absent everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from pdserve.errors import RequestError

MAX_INTEGER = 2**64
"""Integers beyond (either way) are refused here, so that no later message has to print them."""


class Fields:
    """One JSON object. Every reader raises RequestError naming the field by its full path."""

    def __init__(self, body: Mapping[str, Any], path: str = "") -> None:
        self._body = body
        self._path = path
        self._read: set[str] = set()

    def path_of(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def names(self) -> tuple[str, ...]:
        return tuple(self._body)

    def raw(self, name: str) -> Any:
        self._read.add(name)
        return self._body.get(name)

    def boolean(self, name: str, default: bool = False) -> bool:
        value = self.raw(name)
        if value is None:
            return default
        return value if isinstance(value, bool) else self._wrong(name, "a boolean", value)

    def integer(self, name: str) -> int | None:
        value = self.raw(name)
        return None if value is None else as_integer(value, self.path_of(name))

    def number(self, name: str) -> float | None:
        value = self.raw(name)
        return None if value is None else as_number(value, self.path_of(name))

    def string(self, name: str) -> str | None:
        value = self.raw(name)
        return None if value is None else as_string(value, self.path_of(name))

    def nested(self, name: str) -> Fields | None:
        value = self.raw(name)
        return None if value is None else Fields(as_object(value, self.path_of(name)), self.path_of(name))

    def integers(self, name: str) -> tuple[int, ...]:
        value = self.raw(name)
        return () if value is None else as_integers(value, self.path_of(name))

    def strings(self, name: str) -> tuple[str, ...]:
        """A list of strings; one string stands for a list of it."""
        value = self.raw(name)
        if value is None:
            return ()
        if isinstance(value, str):
            return (value,)
        path = self.path_of(name)
        return tuple(as_string(item, f"{path}[{n}]") for n, item in enumerate(as_list(value, path)))

    def accept_only(self, harmless: Mapping[str, Callable[[Any], bool]]) -> None:
        """Fields that are known and not implemented: null or a value that changes nothing, else an error."""
        for name in [name for name in self._body if name in harmless]:
            value = self.raw(name)
            if value is not None and not harmless[name](value):
                path = self.path_of(name)
                raise RequestError(f"{path} is not supported at this value; leave it out", field=path)

    def refuse_unknown(self) -> None:
        """Call last."""
        for name in self._body:
            if name not in self._read:
                shown = ascii(self.path_of(name)[:64])[1:-1]
                raise RequestError(f"{shown} is not a field of this request", field=shown)

    def _wrong(self, name: str, wanted: str, value: object) -> NoReturn:
        wrong_type(self.path_of(name), wanted, value)


def wrong_type(path: str, wanted: str, value: object) -> NoReturn:
    raise RequestError(f"{path} must be {wanted}, not {_kind(value)}", field=path)


def as_integer(value: Any, path: str) -> int:
    if type(value) is not int:
        wrong_type(path, "an integer", value)
    if abs(value) > MAX_INTEGER:
        raise RequestError(f"{path} is an integer of more than 64 bits", field=path)
    return value


def as_number(value: Any, path: str) -> float:
    if type(value) is int:
        return as_integer(value, path)
    return value if isinstance(value, float) else wrong_type(path, "a number", value)


def as_string(value: Any, path: str) -> str:
    return value if isinstance(value, str) else wrong_type(path, "a string", value)


def as_list(value: Any, path: str) -> list[Any]:
    return value if isinstance(value, list) else wrong_type(path, "a list", value)


def as_object(value: Any, path: str) -> dict[str, Any]:
    return value if isinstance(value, dict) else wrong_type(path, "an object", value)


def as_integers(value: Any, path: str) -> tuple[int, ...]:
    items = as_list(value, path)
    if all(type(item) is int for item in items) and (not items or max(map(abs, items)) <= MAX_INTEGER):
        return tuple(items)
    return tuple(as_integer(item, f"{path}[{n}]") for n, item in enumerate(items))


def _kind(value: object) -> str:
    names: dict[type, str] = {
        bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "a list", dict: "an object",
        type(None): "null",
    }  # fmt: skip
    return names[type(value)]
