"""Settings: dataclass fields that carry their help and their limits, and the checks on them."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import Field, field, fields
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


class ConfigError(Exception):
    """Something in a configuration is wrong; `problems` are whole sentences of one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def setting(
    default: T,
    help_text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
    secret: bool = False,
) -> T:
    """A field with help and limits: low <= value <= high, value > above, or one of choices. None is never limited."""
    metadata = {"help": help_text, "low": low, "high": high, "above": above, "choices": choices, "secret": secret}
    made: T = field(default=default, metadata=metadata, repr=not secret)
    return made


def from_mapping(cls: type[T], values: dict[str, Any]) -> T:
    """A config of plain fields from their names; raises ConfigError for an unknown name."""
    known = {one.name for one in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError([f"{name} is not a setting" for name in unknown])
    return cls(**values)


def limits(config: Any) -> list[str]:
    """Every field of one dataclass whose type or value its declaration does not allow."""
    hints = get_type_hints(type(config))
    found = []
    for one in fields(config):
        value, hint = getattr(config, one.name), hints[one.name]
        allowed = _allowed(one, hint, value)
        if allowed is not None:
            shown = "hidden" if one.metadata.get("secret") else repr(value) if isinstance(value, str) else str(value)
            found.append(f"{one.name} is {shown}; it must be {allowed}")
    return found


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _allowed(one: Field[Any], hint: Any, value: Any) -> str | None:
    """What a field allows, in words, when `value` is not it; None when it is (or is no plain value)."""
    options = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    if get_origin(hint) is tuple and one.metadata:
        texts = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
        return None if texts else "text, or a list of texts"
    kind = next((option for option in options if option in _WORDS), None)
    if kind is None or (value is None and type(None) in options):
        return None
    low, high, above = (one.metadata.get(name) for name in ("low", "high", "above"))
    choices = one.metadata.get("choices") or ()
    if choices:
        return None if value in choices else "one of " + ", ".join(choices)
    words = _WORDS[kind] + _range_words(low, high, above)
    if kind in (int, float):
        right_type = isinstance(value, int | float) if kind is float else isinstance(value, int)
        if not right_type or isinstance(value, bool) or not math.isfinite(value):
            return words
        inside = (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)
        return None if inside else words
    return None if isinstance(value, kind) else words


def _range_words(low: float | None, high: float | None, above: float | None) -> str:
    if above is not None and high is not None:
        return f" above {above:g} and at most {high:g}"
    if low is not None and high is not None:
        return f" from {low:g} to {high if isinstance(high, int) else f'{high:g}'}"
    return ""


def is_number(value: object) -> bool:
    """Whether a value is a finite number (a boolean is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def split_address(address: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT or [IPV6]:PORT; raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or not port.isascii():
        raise ValueError(address)
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], int(port)
    if ":" in host or not host:
        raise ValueError(address)
    return host, int(port)


def address_problems(name: str, address: object) -> list[str]:
    """Why an address cannot be listened on, as far as its text tells."""
    try:
        host, port = split_address(str(address))
    except ValueError:
        return [f"{name} is {address!r}; it must be HOST:PORT"]
    if port > 65535:
        return [f"{name} has port {port}; it must be from 0 to 65535"]
    if any(letter.isspace() or not letter.isprintable() for letter in host):
        return [f"{name} is {address!r}; it must be HOST:PORT"]
    return []


def is_loopback(host: str) -> bool:
    """Whether nobody outside this machine reaches a listener on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
