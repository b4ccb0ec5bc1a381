"""A request's record as a tree of spans, free of any tracing library.

request                                       received .. ended, child of the client's own span if it sent one
  queue, prefill, decode_wait, transfer, decode_wait, decode      side by side, each that the request reached
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from router.record import RequestRecord

Attributes = dict[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class PhaseSpan:
    """One phase; offsets from received, seconds."""

    name: str
    start_s: float
    end_s: float
    attributes: Attributes


def request_attributes(record: RequestRecord) -> Attributes:
    """Names of OpenTelemetry's generative AI conventions where they have one, ours elsewhere."""
    timing, verdict = record.timing, record.verdict
    found: dict[str, str | int | float | bool | None] = {
        "gen_ai.request.id": record.request_id,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.response.finish_reasons": None if record.finish_reason is None else record.finish_reason.value,
        "gen_ai.latency.time_to_first_token": record.first_token_s,
        "gen_ai.latency.e2e": record.ended_s,
        "pdserve.outcome": record.outcome.value,
        "pdserve.error": record.error,
        "pdserve.tenant": record.tenant,
        "pdserve.cached_tokens": record.cached_tokens,
        "pdserve.attempts": timing.attempts,
        "pdserve.tpot_s": timing.tpot_s if record.completion_tokens > 1 else None,
        "pdserve.slo.class": record.slo.slo_class,
        "pdserve.slo.ttft_s": record.slo.ttft_s,
        "pdserve.slo.tpot_s": record.slo.tpot_s,
        "pdserve.slo.met_ttft": None if verdict is None else verdict.met_ttft,
        "pdserve.slo.met_tpot": None if verdict is None else verdict.met_tpot,
        "pdserve.slo.blame": None if verdict is None else verdict.blame.value,
    }
    return _known(found)


def phase_spans(record: RequestRecord) -> Iterator[PhaseSpan]:
    """The phases that the request reached, in order, without a gap."""
    end_s, first_s, predicted = record.ended_s, record.first_token_s, record.predicted
    started_s = end_s if record.prefill_started_s is None else record.prefill_started_s
    p, d = record.timing.prefill_worker, record.timing.decode_worker
    yield PhaseSpan("queue", 0.0, started_s, _known({"pdserve.predicted_s": predicted.queue_s}))
    if record.prefill_started_s is not None:
        work: dict[str, str | int | float | bool | None] = {
            "pdserve.worker": p, "pdserve.predicted_s": predicted.prefill_s
        }  # fmt: skip
        if record.prompt_times is not None:
            work["pdserve.worker.queue_s"] = record.prompt_times.queue_s
            work["pdserve.worker.first_token_s"] = record.prompt_times.first_token_s
        yield PhaseSpan("prefill", started_s, end_s if first_s is None else first_s, _known(work))
    if first_s is None:
        return
    decode_s = end_s if record.decode_started_s is None else record.decode_started_s
    yield from _handoff(record, first_s, decode_s)
    if record.decode_started_s is not None and end_s > decode_s:
        steps: dict[str, str | int | float | bool | None] = {
            "pdserve.worker": d, "pdserve.predicted_step_s": predicted.decode_step_s
        }  # fmt: skip
        if record.decode_times is not None:
            steps["pdserve.worker.first_token_s"] = record.decode_times.first_token_s
        yield PhaseSpan("decode", decode_s, end_s, _known(steps))


def _handoff(record: RequestRecord, first_s: float, decode_s: float) -> Iterator[PhaseSpan]:
    """From token 1 to the first decode step; nothing where nothing was handed over."""
    timing, wait = record.timing, {"pdserve.worker": record.timing.decode_worker}
    if timing.transfer_s <= 0.0 and timing.decode_wait_s <= 0.0:
        return
    committed_s = decode_s if record.committed_s is None else record.committed_s
    room_s = committed_s - timing.transfer_s
    if room_s > first_s:
        yield PhaseSpan("decode_wait", first_s, room_s, _known({**wait, "pdserve.waits_for": "room"}))
    if timing.transfer_s > 0.0:
        moved: dict[str, str | int | float | bool | None] = {"pdserve.predicted_s": record.predicted.transfer_s}
        moved |= {"pdserve.source": timing.prefill_worker, "pdserve.target": timing.decode_worker}
        if record.transfer is not None:
            moved |= {
                "pdserve.transfer.bytes": record.transfer.num_bytes,
                "pdserve.transfer.blocks_skipped": record.transfer.blocks_skipped,
                "pdserve.transfer.transport": record.transfer.transport,
                "pdserve.transfer.worker_s": record.transfer.seconds,
                "pdserve.transfer.busy_s": record.transfer.busy_s,
            }
        yield PhaseSpan("transfer", room_s, committed_s, _known(moved))
    if decode_s > committed_s:
        measured = None if record.decode_times is None else record.decode_times.queue_s
        waits = {**wait, "pdserve.waits_for": "step", "pdserve.worker.queue_s": measured}
        yield PhaseSpan("decode_wait", committed_s, decode_s, _known(waits))


def _known(values: dict[str, str | int | float | bool | None]) -> Attributes:
    return {name: value for name, value in values.items() if value is not None}
