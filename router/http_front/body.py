"""A request's body: read within limits, parsed as strict JSON."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from router.http_front.problem import HttpProblem
from router.limits import Limits


async def read_json_object(request: Request, limits: Limits) -> dict[str, Any]:
    """The body as a JSON object. Raises HttpProblem: 408, 413, 415, or 400 for what is not strict JSON."""
    _check_media_type(request)
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            raw = await _read(request, limits.max_message_bytes)
    except TimeoutError:
        message = f"the body did not arrive within {limits.body_timeout_s:g} s"
        raise HttpProblem(408, message, "request_timeout", headers={"connection": "close"}) from None
    return parse_json_object(raw)


def _check_media_type(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HttpProblem(415, "the content type must be application/json", "unsupported_media_type")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise HttpProblem(415, "compressed bodies are not accepted", "unsupported_content_encoding")


async def _read(request: Request, limit: int) -> bytes:
    """At most limit bytes; a body that is longer is refused without being kept."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        _refuse_size(limit)
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                _refuse_size(limit)
            parts.append(part)
    except ClientDisconnect:
        raise HttpProblem(499, "the client left before its body was complete", "client_disconnected") from None
    return b"".join(parts)


def _refuse_size(limit: int) -> NoReturn:
    message = f"the body is larger than {limit:,} bytes"
    raise HttpProblem(413, message, "request_too_large", headers={"connection": "close"})


def parse_json_object(raw: bytes) -> dict[str, Any]:
    """Strict: UTF-8, no key twice, only finite numbers, one object. Raises HttpProblem 400."""
    try:
        parsed = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except _NotStrict as error:
        raise _malformed(str(error)) from None
    except UnicodeDecodeError as error:
        raise _malformed(f"byte {error.start:,} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _malformed(f"{error.msg} at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise _malformed("it is nested too deep") from None
    except ValueError:  # an integer of thousands of digits
        raise _malformed("a number is too long") from None
    if not isinstance(parsed, dict):
        raise _malformed("it is not an object")
    return parsed


class _NotStrict(Exception):
    """What json.loads takes and JSON does not."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _NotStrict(f"key {twice[:64]!a} is there twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise _NotStrict(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _NotStrict(f"number {digits[:32]} is out of range")
    return value


def _malformed(why: str) -> HttpProblem:
    return HttpProblem(400, f"the body is not the JSON that is needed: {why}", "invalid_json")
