"""Spans of ended requests on their way to a collector: OpenTelemetry's own SDK and OTLP exporter.

All spans of a request go in one message, and a message that was not taken is an error of the writer: so every trace is
whole or counted as lost. OpenTelemetry's own batching drops single spans, and counts none.
"""

from __future__ import annotations

import logging
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pdserve import __version__
from router.background import BackgroundSink
from router.record import Outcome, RequestRecord
from router.tracing.phases import phase_spans, request_attributes

EXPORT_TIMEOUT_S = 5.0
GATHER_S = 1.0  # a message for each request would cost more than its spans
MOST_RECORDS = 128  # of one message: some 300 kB of the 4 MiB that a collector takes
_NS = 1_000_000_000
_CONTEXT = TraceContextTextMapPropagator()


class SpanWriter:
    """A `RecordWriter`: a trace per request, continued from the client's where it sent a traceparent.

    A client whose trace is not sampled gets no spans; one without a trace does.
    """

    def __init__(self, exporter: SpanExporter, model: str) -> None:
        resource = Resource.create({"service.name": "pdserve", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # our own end waits, not for ever
        self._ended = _Ended()
        self._provider.add_span_processor(self._ended)
        self._tracer: Tracer = self._provider.get_tracer("pdserve", __version__)
        self._exporter, self._model = exporter, model
        self._words = _LastWords()

    def write(self, records: list[RequestRecord]) -> None:
        for record in records:
            self._write(record)
        spans = self._ended.take()
        if spans and self._exporter.export(spans) is not SpanExportResult.SUCCESS:
            raise OSError(self._words.said or "the collector did not take them")

    def close(self) -> None:
        self._provider.shutdown()
        self._exporter.shutdown()
        self._words.stop()

    def _write(self, record: RequestRecord) -> None:
        begin_ns = int(record.received_unix_s * _NS)
        parent = _parent(record.trace_parent)
        about = {"gen_ai.request.model": self._model, **request_attributes(record)}
        span = self._tracer.start_span("request", parent, SpanKind.SERVER, about, start_time=begin_ns)
        if record.outcome not in (Outcome.FINISHED, Outcome.CANCELLED):
            span.set_status(Status(StatusCode.ERROR, record.error))
        inside = set_span_in_context(span)
        if span.is_recording():
            for phase in phase_spans(record):
                start_ns, end_ns = begin_ns + int(phase.start_s * _NS), begin_ns + int(phase.end_s * _NS)
                child = self._tracer.start_span(phase.name, inside, attributes=phase.attributes, start_time=start_ns)
                child.end(end_ns)
        span.end(begin_ns + int(record.ended_s * _NS))


class _Ended(SpanProcessor):  # type: ignore[misc]  # it has no types
    """The spans that have ended since they were last taken. Of one thread."""

    def __init__(self) -> None:
        self._spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self._spans.append(span)

    def take(self) -> list[ReadableSpan]:
        found, self._spans = self._spans, []
        return found


class _LastWords(logging.Handler):
    """Why the exporter failed, which it tells its log alone; there it would say so again with every message."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said = ""
        self._theirs = logging.getLogger("opentelemetry.exporter.otlp")
        self._theirs.addHandler(self)
        self._theirs.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self.said = record.getMessage()

    def stop(self) -> None:
        self._theirs.removeHandler(self)


def _parent(trace_parent: str | None) -> Context:
    carrier = {} if trace_parent is None else {"traceparent": trace_parent}
    return _CONTEXT.extract(carrier, Context())  # what is malformed is no parent, as the standard says


def trace_sink(endpoint: str, model: str) -> BackgroundSink:
    """Spans to a collector at `http(s)://host:port`; https checks its certificate."""
    secure = urlsplit(endpoint).scheme == "https"
    exporter = OTLPSpanExporter(endpoint, insecure=not secure, timeout=EXPORT_TIMEOUT_S)
    return BackgroundSink("traces", SpanWriter(exporter, model), max_batch=MOST_RECORDS, gather_s=GATHER_S)
