"""Readers of traces in lines: the Azure LLM inference CSV, Mooncake's JSONL, and our own JSONL."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from placement.workload.errors import WorkloadError, at_line
from placement.workload.fields import Fields
from placement.workload.lines import numbered_lines
from placement.workload.request import DEFAULT_BLOCK_TOKENS, MAX_TOKENS, WorkloadRequest

AZURE_HEADER = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
WALL_CLOCK = ("received_unix_s", "time")
OWN_REQUIRED = (("prompt_tokens",), ("output_tokens", "completion_tokens"))


def read_azure(path: Path) -> Iterator[WorkloadRequest]:
    """Arrivals are counted from the first row's timestamp."""
    lines = numbered_lines(path)
    number, header = next(lines, (1, ""))
    if tuple(name.strip() for name in header.split(",")) != AZURE_HEADER:
        raise at_line(path, number, f"the header is {header[:80]!r}; it must be {','.join(AZURE_HEADER)!r}")
    first: tuple[int, float] | None = None
    for number, text in lines:
        cells = text.split(",")
        if len(cells) != len(AZURE_HEADER):
            raise at_line(path, number, f"has {len(cells)} fields; it must have {len(AZURE_HEADER)}")
        second, fraction = _instant(path, number, cells[0].strip())
        first = first or (second, fraction)
        arrival_s = second - first[0] + (fraction - first[1])  # in this order: a date's seconds leave no room for 1e-7
        prompt = _count(path, number, AZURE_HEADER[1], cells[1])
        yield WorkloadRequest(arrival_s, prompt, _count(path, number, AZURE_HEADER[2], cells[2]))


def _instant(path: Path, line: int, text: str, name: str = AZURE_HEADER[0]) -> tuple[int, float]:
    """Whole seconds and the rest of `2023-11-16 18:17:03.9799600`, with or without a time zone."""
    whole, _, rest = text.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    try:
        base = datetime.fromisoformat((whole if digits else text) + rest[len(digits) :])
        zoned = base if base.tzinfo is not None else datetime.fromisoformat(base.isoformat() + "+00:00")
        return int(zoned.timestamp()), float(f"0.{digits}") if digits else 0.0
    except ValueError:
        raise at_line(path, line, f"{name} is {text[:60]!r}; it must be like '2023-11-16 18:17:03.98'") from None


def _count(path: Path, line: int, name: str, cell: str) -> int:
    text = cell.strip()
    value = int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else 0
    if not 1 <= value <= MAX_TOKENS:
        raise at_line(path, line, f"{name} is {text[:60]!r}; it must be a whole number from 1 to {MAX_TOKENS:,}")
    return value


def read_mooncake(path: Path, block_tokens: int = DEFAULT_BLOCK_TOKENS) -> Iterator[WorkloadRequest]:
    """`timestamp` is in milliseconds; `hash_ids` name the prompt's blocks of block_tokens."""
    for number, text in numbered_lines(path):
        row = Fields.parse(path, number, text)
        for name in ("timestamp", "input_length", "output_length"):
            row.require(name)
        prompt = row.tokens("input_length")
        blocks = row.block_ids("hash_ids", prompt, block_tokens)
        yield WorkloadRequest(row.number("timestamp") / 1e3, prompt, row.tokens("output_length"), blocks)


def read_own(path: Path, block_tokens: int = DEFAULT_BLOCK_TOKENS) -> Iterator[WorkloadRequest | None]:
    """Our own lines, and those that a router logs; None for a logged request whose output length nobody knows.

    arrival_s (or time or received_unix_s, by a wall clock), prompt_tokens, output_tokens (or completion_tokens), and
    optionally prefix_ids, session, slo_class (or slo.class), tenant, text. Other fields are left alone: logs have many.
    """
    for number, text in numbered_lines(path):
        row = Fields.parse(path, number, text)
        for names in OWN_REQUIRED:
            row.require(*names)
        logged = row.present("outcome") is not None
        output = row.tokens(row.require("output_tokens", "completion_tokens"), 0 if logged else 1)
        prompt = row.tokens("prompt_tokens", 0 if logged else 1)
        if not (output and prompt):
            yield None
            continue
        yield WorkloadRequest(
            _own_time_s(row),
            prompt,
            output,
            row.block_ids("prefix_ids", prompt, block_tokens),
            row.tokens("session", 0) if row.present("session") else None,
            _slo_class(row),
            row.word("tenant", ""),
            row.word("text", "") or None,
        )


def _own_time_s(row: Fields) -> float:
    """arrival_s, or a wall clock's time, or 0 where there is none."""
    when = row.present("arrival_s", *WALL_CLOCK)
    if when == "time":
        second, fraction = _instant(row.path, row.line, row.word("time", ""), "time")
        return second + fraction
    return 0.0 if when is None else row.number(when)


def _slo_class(row: Fields) -> str:
    nested = row.values.get("slo")
    if isinstance(nested, dict) and row.present("slo_class") is None:
        row = Fields(row.path, row.line, nested)
        return row.word("class" if "class" in nested else "slo_class", "default") or "default"
    return row.word("slo_class", "default") or "default"


def own_is_timed(path: Path) -> tuple[bool, bool]:
    """Whether the first line has a time, and whether it is a wall clock's."""
    for number, text in numbered_lines(path):
        row = Fields.parse(path, number, text)
        when = row.present("arrival_s", *WALL_CLOCK)
        return when is not None, when in WALL_CLOCK
    raise WorkloadError(f"{path}: has no requests")
