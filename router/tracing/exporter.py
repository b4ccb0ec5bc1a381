"""Spans of ended requests on their way to a collector: OpenTelemetry's own SDK and OTLP exporter."""

from __future__ import annotations

from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pdserve import __version__
from router.record import Outcome, RequestRecord
from router.tracing.phases import phase_spans, request_attributes

EXPORT_TIMEOUT_S = 5.0
_NS = 1_000_000_000
_CONTEXT = TraceContextTextMapPropagator()


class SpanWriter:
    """A `RecordWriter`: a trace per request, continued from the client's where it sent a traceparent.

    A client whose trace is not sampled gets no spans; one without a trace does.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer: Tracer = provider.get_tracer("pdserve", __version__)

    def write(self, records: list[RequestRecord]) -> None:
        for record in records:
            self._write(record)

    def close(self) -> None:
        self._provider.shutdown()

    def _write(self, record: RequestRecord) -> None:
        begin_ns = int(record.received_unix_s * _NS)
        parent = _parent(record.trace_parent)
        span = self._tracer.start_span(
            "request", parent, SpanKind.SERVER, request_attributes(record), start_time=begin_ns
        )
        if record.outcome not in (Outcome.FINISHED, Outcome.CANCELLED):
            span.set_status(Status(StatusCode.ERROR, record.error))
        inside = set_span_in_context(span)
        if span.is_recording():
            for phase in phase_spans(record):
                start_ns, end_ns = begin_ns + int(phase.start_s * _NS), begin_ns + int(phase.end_s * _NS)
                child = self._tracer.start_span(phase.name, inside, attributes=phase.attributes, start_time=start_ns)
                child.end(end_ns)
        span.end(begin_ns + int(record.ended_s * _NS))


def _parent(trace_parent: str | None) -> Context:
    carrier = {} if trace_parent is None else {"traceparent": trace_parent}
    return _CONTEXT.extract(carrier, Context())  # what is malformed is no parent, as the standard says


def span_writer(endpoint: str) -> SpanWriter:
    """Spans to a collector at `http(s)://host:port`; https checks its certificate."""
    secure = urlsplit(endpoint).scheme == "https"
    exporter = OTLPSpanExporter(endpoint, insecure=not secure, timeout=EXPORT_TIMEOUT_S)
    resource = Resource.create({"service.name": "pdserve", "service.version": __version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # our own end waits, and not for ever
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return SpanWriter(provider)
