"""Spans of a request, received by a collector over OTLP."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import grpc
import pytest

from pdserve.sampling import FinishReason
from pdserve.slo import Blame, Slo, Timing, Verdict
from router.background import LAST_WORDS_S, BackgroundSink
from router.record import Outcome, Predicted, RequestRecord, Transfer, WorkerTimes
from router.trace_context import well_formed
from router.tracing.phases import phase_spans

pytest.importorskip("opentelemetry.sdk", reason="the extra `tracing` is not installed")

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from router.tracing.exporter import MOST_RECORDS

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
BEGIN_S = 1_700_000_000.0
RECORD = RequestRecord(
    request_id="r", tenant="t", priority=0, slo=Slo("gold", 1.0, 0.1), deadline_s=600.0,
    trace_parent=PARENT, outcome=Outcome.FINISHED, finish_reason=FinishReason.LENGTH, error_status=None, error=None,
    prompt_tokens=64, completion_tokens=5, cached_tokens=16, received_unix_s=BEGIN_S, dispatched_s=0.001,
    prefill_started_s=0.25, first_token_s=0.5, reserved_s=0.625, committed_s=1.0, decode_started_s=1.25, ended_s=2.5,
    timing=Timing(0.25, 0.25, 0.375, 0.375, 1.25, 0.5, 0.5, "prefill-0", "decode-0", 1),
    predicted=Predicted(0.1, 0.2, None, 0.01, 0.02), verdict=Verdict(True, False, Blame.DECODE),
    prompt_times=WorkerTimes(0.24, 0.25), decode_times=WorkerTimes(0.25, 0.02),
    transfer=Transfer(4096, 1, 0.4, 0.05, "shm"),
)  # fmt: skip


class Collector(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]
    """An OpenTelemetry collector that keeps what it gets."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.service = ""
        self.refuses = False
        self.answers = threading.Event()
        self.answers.set()
        self._came = threading.Condition()

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.answers.wait(20.0)
        if self.refuses:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "not for you")
        with self._came:
            for resource in request.resource_spans:
                named = {one.key: one.value.string_value for one in resource.resource.attributes}
                self.service = named["service.name"]
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
            self._came.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    found, server = Collector(), grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(found, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield found, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


def export(endpoint: str, *records: RequestRecord) -> BackgroundSink:
    from router.tracing import trace_sink

    sink = trace_sink(endpoint, "llama")
    for record in records:
        sink.record(record)
    sink.close()
    return sink


def test_one_trace_from_the_client_through_every_phase(collector: tuple[Collector, str]) -> None:
    """The request is a child of the client's span, the phases are children of the request, end to end."""
    found, endpoint = collector
    assert export(endpoint, RECORD).num_lost == 0
    assert found.service == "pdserve" and {span.trace_id.hex() for span in found.spans} == {TRACE}
    (request,) = [span for span in found.spans if span.name == "request"]
    assert request.parent_span_id.hex() == SPAN
    phases = sorted((one for one in found.spans if one is not request), key=lambda span: span.start_time_unix_nano)
    assert {span.parent_span_id for span in phases} == {request.span_id}
    assert [span.name for span in phases] == ["queue", "prefill", "decode_wait", "transfer", "decode_wait", "decode"]
    times = [(span.start_time_unix_nano / 1e9 - BEGIN_S, span.end_time_unix_nano / 1e9 - BEGIN_S) for span in phases]
    edges = [0.0, 0.25, 0.5, 0.625, 1.0, 1.25, 2.5]
    for (start_s, end_s), begin, end in zip(times, edges, edges[1:], strict=False):
        assert (start_s, end_s) == pytest.approx((begin, end), abs=1e-6)
    moved = attributes(phases[3])
    assert moved["pdserve.transfer.transport"] == "shm" and moved["pdserve.transfer.bytes"] == 4096
    assert (moved["pdserve.source"], moved["pdserve.target"]) == ("prefill-0", "decode-0")
    assert attributes(phases[1])["pdserve.worker.first_token_s"] == 0.25
    assert attributes(request)["pdserve.slo.blame"] == "decode"
    assert attributes(request)["gen_ai.usage.output_tokens"] == 5
    assert attributes(request)["gen_ai.request.model"] == "llama"


def test_a_request_without_a_trace_begins_one_and_a_failure_is_an_error(collector: tuple[Collector, str]) -> None:
    """An unsampled trace is left alone."""
    found, endpoint = collector
    failed = replace(RECORD, request_id="f", trace_parent=None, outcome=Outcome.FAILED, error="worker was lost")
    assert export(endpoint, failed, replace(RECORD, trace_parent=PARENT[:-1] + "0")).num_lost == 0
    (request,) = [span for span in found.spans if span.name == "request"]
    assert request.parent_span_id == b"" and request.trace_id.hex() != TRACE
    assert request.status.code == request.status.STATUS_CODE_ERROR and request.status.message == "worker was lost"


def test_what_a_collector_does_not_take_is_counted(
    collector: tuple[Collector, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Every request, and the log has the collector's words once, however many messages it refused."""
    found, endpoint = collector
    found.refuses = True
    sink = export(endpoint, *[RECORD] * (MOST_RECORDS + 1))
    assert sink.num_lost == MOST_RECORDS + 1 and found.spans == []
    ours = [one.getMessage() for one in caplog.records if one.name == "router.background"]
    assert [message for message in ours if "not for you" in message] == ours[:1]
    assert ours[0].startswith(f"traces: {MOST_RECORDS} records not written: ")


def test_a_collector_that_hangs_costs_two_seconds_at_the_end(collector: tuple[Collector, str]) -> None:
    """What it has not answered for by then is lost."""
    found, endpoint = collector
    found.answers.clear()
    before_s = time.monotonic()
    sink = export(endpoint, *[RECORD] * (MOST_RECORDS + 5))
    assert time.monotonic() - before_s < LAST_WORDS_S + 1.0
    assert sink.num_lost == MOST_RECORDS + 5
    found.answers.set()


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def test_spans_of_requests_that_ended_early() -> None:
    """Only what was reached, and without a gap up to the end."""
    rejected = replace(RECORD, prefill_started_s=None, first_token_s=None, ended_s=0.2)
    assert [(one.name, one.end_s) for one in phase_spans(rejected)] == [("queue", 0.2)]
    in_prefill = replace(RECORD, first_token_s=None, ended_s=0.4)
    assert [(one.name, one.end_s) for one in phase_spans(in_prefill)] == [("queue", 0.25), ("prefill", 0.4)]
    one_token = replace(
        RECORD, reserved_s=0.01, committed_s=None, decode_started_s=None, ended_s=0.5,
        timing=Timing(0.25, 0.25, 0.0, 0.0, 0.0, 0.5, 0.0, "prefill-0", "prefill-0", 1),
    )  # fmt: skip
    assert [one.name for one in phase_spans(one_token)] == ["queue", "prefill"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (PARENT, PARENT),
        (PARENT.replace("00-4", "01-4") + "-later", PARENT.replace("00-4", "01-4")),
        ("ff" + PARENT[2:], None),
        (PARENT.upper(), None),
        ("nonsense", None),
        ("", None),
        (None, None),
    ],
)
def test_a_traceparent_is_kept_or_ignored(given: str | None, kept: str | None) -> None:
    """Never a reason to refuse a request."""
    assert well_formed(given) == kept
