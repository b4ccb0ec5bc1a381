"""Where a client's trace comes in: the `traceparent` header, or gRPC metadata, of W3C Trace Context."""

from __future__ import annotations

import re

TRACE_HEADER = "traceparent"

_FORM = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")  # of version 00; later ones are cut to it


def well_formed(given: str | bytes | None) -> str | None:
    """The value, if it is one; what is malformed is ignored, as the standard asks."""
    if not isinstance(given, str):
        return None
    found = _FORM.match(given)
    return found.group() if found is not None and not given.startswith("ff") else None
