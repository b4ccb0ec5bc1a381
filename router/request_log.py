"""One JSON line per request, in a file or on standard output.

A file is appended to, line by line, and opened again when its name stands for another one: logrotate may rename it, or
use copytruncate. docs/slo.md lists the fields.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from pdserve.slo import Verdict
from router.record import RequestRecord

STDOUT = "-"


class RequestLog:
    """A `RecordWriter`."""

    def __init__(self, path: str) -> None:
        """`path` or "-" for standard output. Raises OSError when it cannot be written."""
        self._path = None if path == STDOUT else Path(path)
        self._file: IO[str] = sys.stdout if self._path is None else _appending(self._path)

    def write(self, records: list[RequestRecord]) -> None:
        self._follow_the_name()
        self._file.write("".join(json.dumps(fields_of(record), separators=(",", ":")) + "\n" for record in records))
        self._file.flush()

    def close(self) -> None:
        if self._path is not None:
            self._file.close()

    def _follow_the_name(self) -> None:
        if self._path is None:
            return
        if not self._file.closed:  # it is where the name could not be opened before
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._file.fileno()), self._path.stat()):
                    return
            with suppress(OSError):  # what it still holds was counted when it could not be written
                self._file.close()
        self._file = _appending(self._path)


def _appending(path: Path) -> IO[str]:
    return path.open("a", encoding="utf-8")


def fields_of(record: RequestRecord) -> dict[str, Any]:
    """A record as JSON values; seconds, rounded to microseconds."""
    timing = record.timing
    return {
        "time": datetime.fromtimestamp(record.received_unix_s, UTC).isoformat(timespec="microseconds"),
        "request_id": record.request_id,
        "tenant": record.tenant,
        "priority": record.priority,
        "trace_parent": record.trace_parent,
        "outcome": record.outcome.value,
        "finish_reason": None if record.finish_reason is None else record.finish_reason.value,
        "error_status": record.error_status,
        "error": record.error,
        "slo": _fields(record.slo),
        "verdict": None if record.verdict is None else _verdict(record.verdict),
        "deadline_s": _short(record.deadline_s),
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "cached_tokens": record.cached_tokens,
        "ttft_s": _short(timing.ttft_s) if record.first_token_s is not None else None,
        "tpot_s": _short(timing.tpot_s) if record.completion_tokens > 1 else None,
        "ended_s": _short(record.ended_s),
        "phases": _rounded(
            {
                "queue_s": timing.queue_s,
                "prefill_s": timing.prefill_s,
                "transfer_s": timing.transfer_s,
                "decode_wait_s": timing.decode_wait_s,
                "decode_s": timing.decode_s,
            }
        ),
        "borders": _rounded(
            {
                "dispatched_s": record.dispatched_s,
                "prefill_started_s": record.prefill_started_s,
                "first_token_s": record.first_token_s,
                "reserved_s": record.reserved_s,
                "committed_s": record.committed_s,
                "decode_started_s": record.decode_started_s,
            }
        ),
        "predicted": _fields(record.predicted),
        "prefill_worker": timing.prefill_worker or None,
        "decode_worker": timing.decode_worker or None,
        "attempts": timing.attempts,
        "prompt_times": _fields(record.prompt_times),
        "decode_times": _fields(record.decode_times),
        "transfer": _fields(record.transfer),
    }


def _short(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}


def _fields(part: object) -> dict[str, Any] | None:
    """Of a flat dataclass with slots; `dataclasses.asdict` copies deeply, which costs ten times more."""
    return None if part is None else _rounded({name: getattr(part, name) for name in part.__slots__})  # type: ignore[attr-defined]


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {"met_ttft": verdict.met_ttft, "met_tpot": verdict.met_tpot, "blame": verdict.blame.value}
