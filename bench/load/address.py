"""Where a server is, out of what a user wrote, and a connection to it."""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from pdserve.tls import Tls

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """A URL's parts that anything can be sent to."""

    scheme: str
    host: str  # ASCII: a name beyond it as DNS has it
    port: int
    path: str  # ASCII, without a slash at its end
    extra: bool  # it has a query or a user as well


def address_of(text: str, scheme: str, schemes: tuple[str, ...], allowed: str) -> Address:
    """`scheme`: of a text without one, where the port must be said. Errors: ValueError saying what it must be."""
    try:
        parts = urlsplit(text if "://" in text else f"{scheme}://{text}")
        port, host = parts.port, parts.hostname
    except ValueError:  # brackets, ports, letters that are not what they look like
        raise ValueError(f"it must be {allowed}") from None
    if port is None and "://" in text:
        port = _PORTS.get(parts.scheme)
    if parts.scheme not in schemes or not host or not port:
        raise ValueError(f"it must be {allowed}")
    return Address(parts.scheme, _ascii_host(host), port, _path(parts), bool(parts.query or parts.username))


def http_connection(host: str, port: int, tls: Tls | None, limit_s: float) -> http.client.HTTPConnection:
    """Not yet connected; `tls` None: plain. `limit_s`: of each wait."""
    if tls is None:
        return http.client.HTTPConnection(host, port, timeout=limit_s)
    return http.client.HTTPSConnection(host, port, timeout=limit_s, context=tls.context())


def _ascii_host(host: str) -> str:
    try:
        found = host.encode("idna").decode("ascii")
    except UnicodeError:  # an empty label, one beyond 63 characters
        found = ""
    if not found or not found.isprintable() or " " in found:
        raise ValueError(f"no host can be called {host!r}")
    return found


def _path(parts: SplitResult) -> str:
    path = parts.path
    if not path.isascii() or not path.isprintable() or " " in path:
        raise ValueError("its path must be printable ASCII without spaces; write other characters as %XX")
    return path.rstrip("/")
