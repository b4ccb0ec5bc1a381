"""One request as the page shows it: numbers and names, never what was asked or answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from router.record import RequestRecord

_MAX_CHARS = 160  # of a name or message that a client or worker chose
PHASES = ("queue", "prefill", "transfer", "decode_wait", "decode")


def entry_of(number: int, record: RequestRecord) -> dict[str, Any]:
    """A record for JSON; `number` counts records, so that the page knows which it has."""
    timing, verdict = record.timing, record.verdict
    return {
        "n": number,
        "id": shortened(record.request_id),
        "class": shortened(record.slo.slo_class),
        "ttft_slo_s": record.slo.ttft_s,
        "tpot_slo_s": record.slo.tpot_s,
        "tenant": shortened(record.tenant),
        "outcome": record.outcome.value,
        "status": record.error_status,
        "error": None if record.error is None else shortened(record.error),
        "finish": None if record.finish_reason is None else record.finish_reason.value,
        "met_ttft": None if verdict is None else verdict.met_ttft,
        "met_tpot": None if verdict is None else verdict.met_tpot,
        "blame": None if verdict is None else verdict.blame.value,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": record.completion_tokens,
        "received_unix_s": round(record.received_unix_s, 3),
        "ttft_s": None if record.first_token_s is None else rounded(timing.ttft_s),
        "tpot_s": rounded(timing.tpot_s) if record.completion_tokens > 1 else None,
        "phases_s": [rounded(getattr(timing, f"{phase}_s")) for phase in PHASES],
        "predicted_s": _predicted(record),
        "at_s": {name: rounded(getattr(record, f"{name}_s")) for name in _INSTANTS},
        "prefill_worker": timing.prefill_worker,
        "decode_worker": timing.decode_worker,
        "attempts": timing.attempts,
        "transfer": _transfer(record),
    }


_INSTANTS = ("dispatched", "prefill_started", "first_token", "reserved", "committed", "decode_started", "ended")


def _predicted(record: RequestRecord) -> list[float | None]:
    """What was foretold of each phase; all None where nothing was known."""
    said = record.predicted
    steps = max(0, record.completion_tokens - 1)
    decode_s = None if said.decode_step_s is None else said.decode_step_s * steps
    return [rounded(one) for one in (said.queue_s, said.prefill_s, said.transfer_s, said.decode_wait_s, decode_s)]


def _transfer(record: RequestRecord) -> dict[str, Any] | None:
    moved = record.transfer
    if moved is None:
        return None
    return {
        "bytes": moved.num_bytes,
        "skipped_blocks": moved.blocks_skipped,
        "seconds": rounded(moved.seconds),
        "busy_s": rounded(moved.busy_s),
        "transport": moved.transport,
    }


def entries(numbered: Iterable[tuple[int, RequestRecord]]) -> list[dict[str, Any]]:
    """Newest first."""
    return [entry_of(number, record) for number, record in numbered][::-1]


def rounded(value: float | None, digits: int = 4) -> float | None:
    """Shorter JSON: `digits` that mean something."""
    return None if value is None else float(f"{value:.{digits}g}")


def shortened(text: str) -> str:
    return text if len(text) <= _MAX_CHARS else text[: _MAX_CHARS - 1] + "…"


def rounded_values(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: rounded(value) for name, value in values.items()}
